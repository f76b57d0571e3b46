//! The memory of one chunk's logits, which all chunks of a pass use in turn.

use tch::Tensor;

use crate::kernels::logits_kind;

/// Room for the logits of the largest chunk. What a chunk has there holds until the next one comes.
#[derive(Debug)]
pub(super) struct LogitsRoom {
    /// `[R, V/tp]`, in the stream's type: what products give and take.
    products: Tensor,
    /// `[R, V/tp]`, in the type that logits are kept in; the same memory where both types are one.
    logits: Tensor,
}

impl LogitsRoom {
    /// For chunks of at most `rows` rows of `y`, which is `[any, D]`, and `columns` tokens.
    pub fn new(rows: i64, columns: i64, y: &Tensor) -> Self {
        let room = |kind| Tensor::empty([rows, columns], (kind, y.device()));
        let (kind, kept) = (y.kind(), logits_kind(y));
        let products = room(kind);
        let logits = if kept == kind { products.shallow_clone() } else { room(kept) };
        Self { products, logits }
    }

    /// The same memory.
    pub fn share(&self) -> Self {
        Self { products: self.products.shallow_clone(), logits: self.logits.shallow_clone() }
    }

    /// The logits of `y`, `[R, D]`, which are this chunk's to change. `lm_head`: `[V/tp, D]`.
    pub fn logits(&self, y: &Tensor, lm_head: &Tensor) -> Tensor {
        let (products, mut logits) = self.chunk(y.size()[0]);
        let _ = y.mm_out(&products, &lm_head.tr());
        if products.kind() != logits.kind() {
            logits.copy_(&products);
        }
        logits
    }

    /// What the chunk's logits, `[R, V/tp]`, have turned into, in the stream's type.
    pub fn as_products(&self, logits: &Tensor) -> Tensor {
        let (mut products, _) = self.chunk(logits.size()[0]);
        if products.kind() != logits.kind() {
            products.copy_(logits);
        }
        products
    }

    fn chunk(&self, rows: i64) -> (Tensor, Tensor) {
        (self.products.narrow(0, 0, rows), self.logits.narrow(0, 0, rows))
    }
}
