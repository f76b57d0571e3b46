//! Causal grouped-query attention by libtorch's flash kernel and its backward. Tokens of different samples never meet:
//! each run of samples of one length is a call of its own, and so is each sequence with a cache.

use tch::{Kind, Tensor};

use super::super::attention::{AttendGrad, AttendSaved, AttentionShape, KeyValueCache};
use super::super::samples::{Run, Samples};
use super::rope::rotate;

/// See [`crate::kernels::attend`].
pub fn attend(shape: &AttentionShape, qkv: &Tensor, samples: &Samples) -> (Tensor, AttendSaved) {
    let mut runs = samples.runs().into_iter().map(|run| attend_run(shape, qkv, run));
    if runs.len() == 1 {
        let (heads, logsumexp) = runs.next().expect("one run");
        return (heads, AttendSaved::Dense(logsumexp));
    }
    let (heads, logsumexp): (Vec<Tensor>, Vec<Tensor>) = runs.unzip();
    (Tensor::cat(&heads, 0), AttendSaved::Runs(logsumexp))
}

/// Output of a run's heads, `[samples L, H K]`, and the log-sum-exp of its scores, `[samples, H, L]`.
fn attend_run(shape: &AttentionShape, qkv: &Tensor, run: Run) -> (Tensor, Tensor) {
    let [q, k, v] = split(shape, qkv, run);
    let (out, logsumexp) =
        Tensor::internal_scaled_dot_product_flash_attention_for_cpu(&q, &k, &v, 0.0, true, None::<&Tensor>, None);
    (out.transpose(1, 2).reshape([run.count * run.len, shape.num_heads * shape.head_dim]), logsumexp)
}

/// See [`crate::kernels::attend_backward`].
pub fn attend_backward(shape: &AttentionShape, pass: AttendGrad) -> Tensor {
    let AttendGrad { qkv, samples, heads, saved, dheads, cos, sin } = pass;
    let mut dqkv = qkv.empty_like();
    let logsumexp = match saved {
        AttendSaved::Dense(logsumexp) => std::slice::from_ref(logsumexp),
        AttendSaved::Runs(logsumexp) => logsumexp,
        AttendSaved::Cudnn(_) | AttendSaved::Flash(_) | AttendSaved::Plain(_) => {
            panic!("saved by a GPU's attention: {saved:?}")
        }
    };
    for (run, logsumexp) in samples.runs().into_iter().zip(logsumexp) {
        let [q, k, v] = split(shape, qkv, run);
        let (dq, dk, dv) = Tensor::internal_scaled_dot_product_flash_attention_for_cpu_backward(
            &per_head(shape, dheads, run),
            &q,
            &k,
            &v,
            &per_head(shape, heads, run),
            logsumexp,
            0.0,
            true,
            None::<&Tensor>,
            None,
        );
        join(shape, &dqkv, run, [dq, dk, dv]);
    }
    rotate(&mut dqkv, shape.num_rotated_heads() as usize, cos, sin);
    dqkv
}

/// See [`crate::kernels::attend_cached`].
pub fn attend_cached(
    shape: &AttentionShape,
    qkv: &Tensor,
    samples: &Samples,
    caches: &mut [&mut KeyValueCache],
) -> Tensor {
    let spans = samples.spans();
    assert_eq!(spans.len(), caches.len(), "a cache for each sequence");
    let heads: Vec<Tensor> = spans
        .iter()
        .zip(caches)
        .map(|(span, cache)| {
            assert_eq!(span.first_position, cache.len(), "new tokens begin where the cache ends");
            attend_new(shape, &qkv.narrow(0, span.start, span.len), cache)
        })
        .collect();
    Tensor::cat(&heads, 0)
}

/// Attention of one sequence's new tokens. `qkv`: `[n, H + 2G, K]`. Returns `[n, H K]`.
fn attend_new(shape: &AttentionShape, qkv: &Tensor, cache: &mut KeyValueCache) -> Tensor {
    let &AttentionShape { num_heads, num_key_value_heads: groups, head_dim } = shape;
    cache.append(shape, qkv);
    let (new, tokens) = (qkv.size()[0], cache.len());
    // The query heads of one key/value head are further rows of its queries: nothing cached is repeated.
    let per_group = num_heads / groups;
    let q = qkv.narrow(1, 0, num_heads).reshape([new, groups, per_group, head_dim]); // [n, G, H/G, K]
    let q = q.permute([1, 2, 0, 3]).reshape([1, groups, per_group * new, head_dim]); // [1, G, H/G n, K]
    let [k, v] = cache.held().map(|held| held.unsqueeze(0)); // [1, G, tokens, K]
    let mask = (new > 1).then(|| causal_mask(new, tokens, q.kind()).repeat([per_group, 1]));
    let (out, _) =
        Tensor::internal_scaled_dot_product_flash_attention_for_cpu(&q, &k, &v, 0.0, false, mask.as_ref(), None);
    let out = out.reshape([groups, per_group, new, head_dim]).permute([2, 0, 1, 3]); // [n, G, H/G, K]
    out.reshape([new, num_heads * head_dim])
}

/// What is added to the scores of the last `new` of `tokens` tokens: `[new, tokens]`, minus infinity for later tokens.
fn causal_mask(new: i64, tokens: i64, kind: Kind) -> Tensor {
    let later = Tensor::ones([new, tokens], (Kind::Bool, crate::device::HOST)).triu(tokens - new + 1);
    Tensor::zeros([new, tokens], (kind, crate::device::HOST)).masked_fill(&later, f64::NEG_INFINITY)
}

/// `[T, H K]` to the run's `[samples, H, L, K]`.
fn per_head(shape: &AttentionShape, heads: &Tensor, run: Run) -> Tensor {
    heads
        .narrow(0, run.start, run.count * run.len)
        .view([run.count, run.len, shape.num_heads, shape.head_dim])
        .transpose(1, 2)
}

/// `[T, H + 2G, K]` to the run's `[samples, H + 2G, L, K]`.
fn per_qkv_head(shape: &AttentionShape, qkv: &Tensor, run: Run) -> Tensor {
    qkv.narrow(0, run.start, run.count * run.len)
        .view([run.count, run.len, shape.num_qkv_heads(), shape.head_dim])
        .transpose(1, 2)
}

/// q, k and v of a run, each `[samples, H, L, K]`: key and value heads are repeated for their query heads.
fn split(shape: &AttentionShape, qkv: &Tensor, run: Run) -> [Tensor; 3] {
    let &AttentionShape { num_heads, num_key_value_heads: groups, head_dim } = shape;
    let qkv = per_qkv_head(shape, qkv, run);
    let repeated = |first: i64| {
        let heads = qkv.narrow(1, first, groups); // [samples, G, L, K]
        if groups == num_heads {
            return heads;
        }
        let size = [run.count, groups, num_heads / groups, run.len, head_dim];
        heads.unsqueeze(2).expand(size, false).reshape([run.count, num_heads, run.len, head_dim])
    };
    [qkv.narrow(1, 0, num_heads), repeated(num_heads), repeated(num_heads + groups)]
}

/// Writes the gradients of a run's q, k and v into `dqkv` (`[T, H + 2G, K]`), the inverse of [`split`].
fn join(shape: &AttentionShape, dqkv: &Tensor, run: Run, grads: [Tensor; 3]) {
    let &AttentionShape { num_heads, num_key_value_heads: groups, head_dim } = shape;
    let dqkv = per_qkv_head(shape, dqkv, run);
    let [dq, dk, dv] = grads;
    dqkv.narrow(1, 0, num_heads).copy_(&dq);
    for (first, grad) in [(num_heads, dk), (num_heads + groups, dv)] {
        let size = [run.count, groups, num_heads / groups, run.len, head_dim];
        let summed = if groups == num_heads {
            grad
        } else {
            grad.reshape(size).sum_dim_intlist([2i64].as_slice(), false, None::<Kind>)
        };
        dqkv.narrow(1, first, groups).copy_(&summed);
    }
}
