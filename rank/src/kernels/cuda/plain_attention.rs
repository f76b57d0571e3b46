//! Causal attention of operations that every device has, in the wide type: for types and head sizes that neither cuDNN nor flash
//! attention takes, for new tokens with a cache, and for the emulation. Scores exist for some heads of one sample at a time.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::super::attention::{AttentionShape, KeyValueCache};
use super::super::samples::{Samples, Span};
use super::super::wide_kind;

/// Scores that exist at a time, in elements, unless one head has more.
const SCORES_AT_A_TIME: i64 = 1 << 26;

/// Output of the heads, `[T, H K]`, and the log-sum-exp of their scores, `[H, T]` in the wide type.
pub fn forward(shape: &AttentionShape, qkv: &Tensor, samples: &Samples) -> (Tensor, Tensor) {
    let &AttentionShape { num_heads, head_dim, .. } = shape;
    let tokens = qkv.size()[0];
    let heads = Tensor::empty([tokens, num_heads, head_dim], (qkv.kind(), qkv.device()));
    let logsumexp = Tensor::empty([num_heads, tokens], (wide_kind(qkv.kind()), qkv.device()));
    for part in parts(shape, samples) {
        let [q, k, v] = part.operands(qkv);
        let scores = part.scores(&q, &k);
        let sums = scores.logsumexp([-1i64].as_slice(), true);
        let out = (scores - &sums).exp_().bmm(&v);
        part.put_heads(&heads, &out);
        part.of_heads(&logsumexp).copy_(&sums.view([part.num_query_heads(), part.span.len]));
    }
    (heads.view([tokens, num_heads * head_dim]), logsumexp)
}

/// What [`backward`] takes beside q, k and v.
pub struct Backward<'a> {
    /// Output of the heads: `[T, H K]`
    pub heads: &'a Tensor,
    /// From the forward pass.
    pub logsumexp: &'a Tensor,
    /// Gradient of `heads`.
    pub dheads: &'a Tensor,
}

/// The gradients of q, `[T, H, K]`, and of k and v, `[T, G, K]`.
pub fn backward(shape: &AttentionShape, qkv: &Tensor, samples: &Samples, pass: Backward) -> [Tensor; 3] {
    let Backward { heads, logsumexp, dheads } = pass;
    let &AttentionShape { num_heads, num_key_value_heads: groups, head_dim } = shape;
    let [dq, dk, dv] = [num_heads, groups, groups]
        .map(|heads| Tensor::empty([qkv.size()[0], heads, head_dim], (qkv.kind(), qkv.device())));
    for part in parts(shape, samples) {
        let [q, k, v] = part.operands(qkv);
        let [out, dout] =
            [heads, dheads].map(|heads| part.query_heads(&heads.view([-1, shape.num_heads, shape.head_dim])));
        let sums = part.of_heads(logsumexp).reshape([part.num_groups(), -1, 1]);
        let shares = (part.scores(&q, &k) - sums).exp_();
        part.put_key_values(&dv, &shares.transpose(1, 2).bmm(&dout));
        let own = (out * &dout).sum_dim_intlist([-1i64].as_slice(), true, None::<Kind>);
        let dscores = shares * (dout.bmm(&v.transpose(1, 2)) - own) * part.scale();
        part.put_heads(&dq, &dscores.bmm(&k));
        part.put_key_values(&dk, &dscores.transpose(1, 2).bmm(&q));
    }
    [dq, dk, dv]
}

/// See [`crate::kernels::attend_cached`].
pub fn attend_cached(
    shape: &AttentionShape,
    qkv: &Tensor,
    samples: &Samples,
    caches: &mut [&mut KeyValueCache],
) -> Tensor {
    let &AttentionShape { num_heads, num_key_value_heads: groups, head_dim } = shape;
    let spans = samples.spans();
    assert_eq!(spans.len(), caches.len(), "a cache for each sequence");
    let heads = Tensor::empty([qkv.size()[0], num_heads, head_dim], (qkv.kind(), qkv.device()));
    for (&span, cache) in spans.iter().zip(caches) {
        assert_eq!(span.first_position, cache.len(), "new tokens begin where the cache ends");
        cache.append(shape, &qkv.narrow(0, span.start, span.len));
        let part = Part { shape, span, groups: 0..groups };
        let wide = wide_kind(qkv.kind());
        let [k, v] = cache.held().map(|held| held.to_kind(wide));
        let shares = part.scores(&part.query_heads(&qkv.narrow(1, 0, num_heads)), &k).softmax(-1, None::<Kind>);
        part.put_heads(&heads, &shares.bmm(&v));
    }
    heads.view([-1, num_heads * head_dim])
}

/// Some key/value heads of one sample, and the query heads that they serve. Letters: n heads of them, each of r query heads.
struct Part<'a> {
    shape: &'a AttentionShape,
    span: Span,
    /// The key/value heads.
    groups: Range<i64>,
}

/// The parts of all samples.
fn parts<'a>(shape: &'a AttentionShape, samples: &Samples) -> impl Iterator<Item = Part<'a>> {
    let all = shape.num_key_value_heads;
    samples.spans().to_vec().into_iter().flat_map(move |span| {
        let scores_per_group = shape.num_heads / all * span.len * span.len;
        let at_a_time = (SCORES_AT_A_TIME / scores_per_group).max(1);
        let starts = (0..all).step_by(at_a_time as usize);
        starts.map(move |start| Part { shape, span, groups: start..all.min(start + at_a_time) })
    })
}

impl Part<'_> {
    /// n
    fn num_groups(&self) -> i64 {
        self.groups.end - self.groups.start
    }

    /// r
    fn heads_per_group(&self) -> i64 {
        self.shape.num_heads / self.shape.num_key_value_heads
    }

    /// n r
    fn num_query_heads(&self) -> i64 {
        self.num_groups() * self.heads_per_group()
    }

    fn first_query_head(&self) -> i64 {
        self.groups.start * self.heads_per_group()
    }

    /// `1 / sqrt(K)`
    fn scale(&self) -> f64 {
        1.0 / (self.shape.head_dim as f64).sqrt()
    }

    /// q, `[n, r L, K]`, and k and v, `[n, L, K]`, in the wide type. `qkv`: `[T, H + 2G, K]`
    fn operands(&self, qkv: &Tensor) -> [Tensor; 3] {
        let &AttentionShape { num_heads, num_key_value_heads: groups, .. } = self.shape;
        let key_values = |first: i64| self.key_values(&qkv.narrow(1, first, groups)).to_kind(wide_kind(qkv.kind()));
        [self.query_heads(&qkv.narrow(1, 0, num_heads)), key_values(num_heads), key_values(num_heads + groups)]
    }

    /// The part's of `heads`, `[T, H, K]`: `[n, r L, K]` in the wide type.
    fn query_heads(&self, heads: &Tensor) -> Tensor {
        let own = self.own_heads(heads).transpose(0, 1); // [n r, L, K]
        own.reshape([self.num_groups(), -1, self.shape.head_dim]).to_kind(wide_kind(heads.kind()))
    }

    /// A view of the part's of `heads`, `[T, H, K]`: `[L, n r, K]`.
    fn own_heads(&self, heads: &Tensor) -> Tensor {
        heads.narrow(0, self.span.start, self.span.len).narrow(1, self.first_query_head(), self.num_query_heads())
    }

    /// A view of the part's of key or value heads, `[T, G, K]`: `[n, L, K]`.
    fn key_values(&self, heads: &Tensor) -> Tensor {
        let tokens = heads.narrow(0, self.span.start, self.span.len);
        tokens.narrow(1, self.groups.start, self.num_groups()).transpose(0, 1)
    }

    /// Puts `values`, `[n, r L, K]`, into their place among `heads`, `[T, H, K]`.
    fn put_heads(&self, heads: &Tensor, values: &Tensor) {
        let values = values.reshape([self.num_query_heads(), self.span.len, self.shape.head_dim]);
        self.own_heads(heads).copy_(&values.transpose(0, 1));
    }

    /// Puts `values`, `[n, L, K]`, into their place among key or value heads, `[T, G, K]`.
    fn put_key_values(&self, heads: &Tensor, values: &Tensor) {
        self.key_values(heads).copy_(values);
    }

    /// A view of the part's of `[H, T]`: `[n r, L]`.
    fn of_heads(&self, values: &Tensor) -> Tensor {
        values.narrow(0, self.first_query_head(), self.num_query_heads()).narrow(1, self.span.start, self.span.len)
    }

    /// Scaled scores, minus infinity for later tokens: `[n, r L, M]`. `q`: `[n, r L, K]`; `k`: `[n, M, K]`, of which the last L are
    /// those of `q`.
    fn scores(&self, q: &Tensor, k: &Tensor) -> Tensor {
        let (new, all) = (self.span.len, k.size()[1]);
        let later = Tensor::ones([new, all], (Kind::Bool, q.device())).triu(all - new + 1);
        let scores = (q.bmm(&k.transpose(1, 2)) * self.scale()).view([-1, new, all]);
        scores.masked_fill(&later, f64::NEG_INFINITY).view([q.size()[0], -1, all])
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::attention::{AttendGrad, AttendSaved};
    use super::super::super::cpu;
    use super::*;
    use crate::device::HOST;

    const SHAPES: [AttentionShape; 3] = [
        AttentionShape { num_heads: 4, num_key_value_heads: 4, head_dim: 8 },
        AttentionShape { num_heads: 6, num_key_value_heads: 2, head_dim: 10 },
        AttentionShape { num_heads: 3, num_key_value_heads: 1, head_dim: 16 },
    ];

    fn close(a: &Tensor, b: &Tensor) {
        let scale = b.abs().max().double_value(&[]);
        let error = (a - b).abs().max().double_value(&[]) / scale;
        assert!(error < 1e-5, "{error}");
    }

    #[test]
    fn it_equals_the_cpus_flash_attention_both_ways() {
        for shape in &SHAPES {
            for lens in [&[7][..], &[1], &[5, 5, 5], &[3, 1, 9, 4]] {
                let samples = Samples::new(lens);
                let random = |size: &[i64]| Tensor::randn(size, (Kind::Float, HOST));
                let qkv = random(&[samples.num_tokens(), shape.num_qkv_heads(), shape.head_dim]);
                let dheads = random(&[samples.num_tokens(), shape.num_heads * shape.head_dim]);
                let (heads, logsumexp) = forward(shape, &qkv, &samples);
                let (expected, saved) = cpu::attention::attend(shape, &qkv, &samples);
                close(&heads, &expected);
                let pass = Backward { heads: &heads, logsumexp: &logsumexp, dheads: &dheads };
                let dqkv = Tensor::cat(&backward(shape, &qkv, &samples, pass), 1);
                // No rotation.
                let zeros = random(&[samples.num_tokens(), shape.head_dim / 2]).zeros_like();
                let (cos, sin): (&Tensor, &Tensor) = (&zeros.ones_like(), &zeros);
                let saved: &AttendSaved = &saved;
                let (qkv, samples) = (&qkv, &samples);
                let pass = AttendGrad { qkv, samples, heads: &expected, saved, dheads: &dheads, cos, sin };
                close(&dqkv, &cpu::attention::attend_backward(shape, pass));
            }
        }
    }

    #[test]
    fn scores_of_some_heads_at_a_time_are_those_of_all() {
        let shape = AttentionShape { num_heads: 4, num_key_value_heads: 2, head_dim: 4 };
        // One sample whose scores of one key/value head alone are as many as exist at a time.
        let len = 6000;
        let samples = Samples::new(&[2, len]);
        let parts: Vec<(i64, Range<i64>)> = parts(&shape, &samples).map(|part| (part.span.len, part.groups)).collect();
        assert_eq!(parts, [(2, 0..2), (len, 0..1), (len, 1..2)]);
    }

    #[test]
    fn new_tokens_attend_to_those_in_their_cache() {
        for shape in &SHAPES {
            let random =
                |tokens: i64| Tensor::randn([tokens, shape.num_qkv_heads(), shape.head_dim], (Kind::Float, HOST));
            let (first, more) = (random(5), random(4));
            let caches = || [(); 2].map(|()| KeyValueCache::new(shape, 8, (Kind::Float, HOST)));
            let (mut own, mut cpus) = (caches(), caches());
            for (qkv, lens, positions) in [(first, [3, 2], [0, 0]), (more, [1, 3], [3, 2])] {
                let samples = Samples::continuing(&lens, &positions);
                let got = attend_cached(shape, &qkv, &samples, &mut own.each_mut());
                close(&got, &cpu::attention::attend_cached(shape, &qkv, &samples, &mut cpus.each_mut()));
            }
        }
    }
}
