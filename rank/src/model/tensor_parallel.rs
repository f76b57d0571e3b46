//! Tensor parallelism (Shoeybi et al., 2019) and sequence parallelism (Korthikanti et al., 2022) as the units see them.
//!
//! Between the parallel parts of a layer lies the residual *stream*. A part takes what all ranks need to see
//! ([`TensorParallel::gather`]), computes its share, and leaves a partial sum ([`TensorParallel::reduce`]):
//!
//! ```text
//!             stream        gather             reduce
//! off         [T, D]        nothing            nothing
//! tensor      [T, D]        nothing            all-reduce
//! sequence    [T/tp, D]     all-gather         reduce-scatter
//! ```
//!
//! Each is the other's backward pass: the gradient of what was gathered is reduced, and the other way round. Under
//! sequence parallelism the tokens are padded to a multiple of the ranks; rows of padding have zero gradients.

use std::cell::Cell;
use std::ops::Deref;

use comm::{CommError, ReduceOp};
use proto::layout::TensorSplit;
use proto::memory::Exchange;
use proto::plan::Plan;
use tch::{Kind, Tensor};

use crate::device::{Buffer, compute_kind};
use crate::groups::Group;
use crate::ranks::Ranks;

/// How this rank takes part in a layer.
pub enum TensorParallel {
    /// It computes the whole layer.
    Off,
    /// It computes a part.
    On(Box<Part>),
}

/// A part of each layer, and the buffers that the ranks of a layer exchange through.
pub struct Part {
    split: TensorSplit,
    group: Group,
    /// `[T, D]` of the largest micro-batch, in the compute type. [`Exchanged`] tensors lie in it.
    tokens: Buffer,
    /// How often `tokens` has been given to something new.
    uses: Cell<u64>,
    /// Two fp64 values per token, or, for adapters with magnitudes, one for each row of a matrix.
    rows: Buffer,
    hidden_size: i64,
}

/// A tensor that may lie in the buffer through which the ranks of a layer exchange. It holds until the next exchange, or
/// the next partial sum: who reads it after that panics. One that lies elsewhere holds for good.
#[must_use = "the next exchange overwrites it"]
pub struct Exchanged<'a> {
    tensor: Tensor,
    /// Where it lies in that buffer: whose, and which use of it this is.
    held: Option<(&'a Part, u64)>,
}

impl Exchanged<'_> {
    /// The same values in memory of their own, if they would not outlast the next exchange.
    pub fn keep(self) -> Self {
        let tensor = if self.held.is_some() { self.copy() } else { self.tensor };
        Self { tensor, held: None }
    }
}

impl Deref for Exchanged<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        if let Some((part, use_of)) = self.held {
            assert_eq!(part.uses.get(), use_of, "a tensor is read after a later exchange has overwritten it");
        }
        &self.tensor
    }
}

impl TensorParallel {
    /// Allocates the buffers where a layer has more than one rank. Does not block.
    pub fn new(plan: &Plan, ranks: &Ranks) -> Result<Self, CommError> {
        let coord = ranks.groups.coord;
        let split = TensorSplit { size: plan.mesh.tp, rank: coord.tp, sequence: plan.sequence_parallel };
        if split.size == 1 {
            return Ok(Self::Off);
        }
        let (sizes, kind) = (Exchange::of(plan, coord), compute_kind(plan.model.compute_dtype));
        Ok(Self::On(Box::new(Part {
            tokens: ranks.allocate(kind, sizes.tokens)?,
            uses: Cell::new(0),
            rows: ranks.allocate(Kind::Double, sizes.rows)?,
            hidden_size: plan.model.config.hidden_size as i64,
            group: ranks.groups.tp.clone(),
            split,
        })))
    }

    /// Which part of a layer this rank has.
    pub fn split(&self) -> TensorSplit {
        match self {
            Self::Off => TensorSplit::WHOLE,
            Self::On(part) => part.split,
        }
    }

    /// Rows of the stream on this rank, for a micro-batch of this many tokens.
    pub fn stream_rows(&self, tokens: i64) -> i64 {
        match self {
            Self::On(part) if part.split.sequence => part.padded(tokens) / part.split.size as i64,
            _ => tokens,
        }
    }

    /// The stream's rows of all tokens: `[T, D]`. Collective over tp under sequence parallelism.
    pub fn gather(&self, stream: &Tensor, tokens: i64) -> Result<Exchanged<'_>, CommError> {
        match self {
            Self::On(part) if part.split.sequence => part.all_gather(stream, tokens),
            _ => Ok(Exchanged { tensor: stream.shallow_clone(), held: None }),
        }
    }

    /// Returns the tensor for a part's sum of `tokens` rows: `[T, D]`, not initialised. It overwrites the gathered
    /// rows.
    pub fn partial(&self, tokens: i64, like: &Tensor, width: i64) -> Tensor {
        match self {
            Self::Off => Tensor::empty([tokens, width], (like.kind(), like.device())),
            Self::On(part) => {
                part.begin_use();
                part.view(tokens)
            }
        }
    }

    /// Sums `partial` (`[T, D]`, made by [`TensorParallel::partial`]) over the ranks and returns this rank's stream of
    /// it. Collective over tp.
    pub fn reduce(&self, partial: Tensor) -> Result<Exchanged<'_>, CommError> {
        match self {
            Self::Off => Ok(Exchanged { tensor: partial, held: None }),
            Self::On(part) => part.reduce(partial),
        }
    }

    /// As [`TensorParallel::reduce`], plus `residual`. The result is the caller's.
    pub fn reduce_onto(&self, partial: Tensor, residual: &Tensor) -> Result<Tensor, CommError> {
        match self {
            Self::Off => {
                let mut sum = partial;
                let _ = sum.g_add_(residual);
                Ok(sum)
            }
            Self::On(part) => Ok(residual + &*part.reduce(partial)?),
        }
    }

    /// The sum or maximum of each value over the ranks. `values`: fp64, at most two per token of a micro-batch, or one for each row of a matrix.
    /// Collective over tp. The result is the caller's.
    pub fn all_reduce(&self, values: &Tensor, op: ReduceOp) -> Result<Tensor, CommError> {
        let Self::On(part) = self else { return Ok(values.shallow_clone()) };
        let mut exchanged = part.rows.view(0, &[values.numel()]).view_as(values);
        exchanged.copy_(values);
        part.group.all_reduce(part.rows.operand().slice(0, values.numel()), op)?.wait()?;
        Ok(exchanged.copy())
    }
}

impl Part {
    /// Rows of the padded tokens.
    fn padded(&self, tokens: i64) -> i64 {
        (tokens as usize).next_multiple_of(self.split.size) as i64
    }

    /// The first `rows` of the buffer: `[rows, D]`.
    fn view(&self, rows: i64) -> Tensor {
        self.tokens.view(0, &[rows as usize, self.hidden_size as usize])
    }

    fn elements(&self, rows: i64) -> comm::Buffer {
        self.tokens.operand().slice(0, (rows * self.hidden_size) as usize)
    }

    /// This rank's rows of the padded tokens: `[T/tp, D]`.
    fn own(&self, padded: i64) -> Tensor {
        let rows = padded / self.split.size as i64;
        self.view(padded).narrow(0, self.split.rank as i64 * rows, rows)
    }

    /// Whatever lay in `tokens` is not to be read any more.
    fn begin_use(&self) {
        self.uses.set(self.uses.get() + 1);
    }

    /// `tensor`, which lies in `tokens`, until the next use.
    fn exchanged(&self, tensor: Tensor) -> Exchanged<'_> {
        Exchanged { tensor, held: Some((self, self.uses.get())) }
    }

    fn all_gather(&self, stream: &Tensor, tokens: i64) -> Result<Exchanged<'_>, CommError> {
        self.begin_use();
        let padded = self.padded(tokens);
        self.own(padded).copy_(stream);
        self.group.all_gather(self.elements(padded))?.wait()?;
        Ok(self.exchanged(self.view(tokens)))
    }

    fn reduce(&self, partial: Tensor) -> Result<Exchanged<'_>, CommError> {
        assert_eq!(partial.data_ptr(), self.view(1).data_ptr(), "a partial sum lies in the group's buffer");
        let tokens = partial.size()[0];
        if !self.split.sequence {
            self.group.all_reduce(self.elements(tokens), ReduceOp::Sum)?.wait()?;
            return Ok(self.exchanged(partial));
        }
        let padded = self.padded(tokens);
        let _ = self.view(padded).narrow(0, tokens, padded - tokens).zero_();
        self.group.reduce_scatter(self.elements(padded), ReduceOp::Sum)?.wait()?;
        Ok(self.exchanged(self.own(padded)))
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::rc::Rc;

    use super::*;
    use crate::device::HOST;

    #[test]
    fn what_passes_between_ranks_holds_until_the_next_exchange() {
        let tp = TensorParallel::On(Box::new(Part {
            split: TensorSplit { size: 2, rank: 0, sequence: false },
            group: Rc::new(comm::SoloGroup),
            tokens: Buffer::zeros(HOST, Kind::Float, 8),
            uses: Cell::new(0),
            rows: Buffer::zeros(HOST, Kind::Double, 8),
            hidden_size: 2,
        }));
        let TensorParallel::On(part) = &tp else { unreachable!("it was made so") };
        let like = Tensor::zeros([4, 2], (Kind::Float, HOST));
        let _ = tp.partial(4, &like, 2).fill_(1.0);
        let [kept, held] = [(); 2].map(|()| part.exchanged(part.view(4)));
        let kept = kept.keep();
        let sum = |tensor: &Tensor| tensor.sum(Kind::Double).double_value(&[]);
        assert_eq!((sum(&held), sum(&kept)), (8.0, 8.0));
        let _ = tp.partial(4, &like, 2).fill_(2.0);
        assert!(catch_unwind(AssertUnwindSafe(|| sum(&held))).is_err(), "it holds the next sum now");
        assert_eq!(sum(&kept), 8.0);
    }
}
