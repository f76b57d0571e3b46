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
    /// `[T, D]` of the largest micro-batch, in the compute type. What `gather` and `reduce` return lies in it and holds
    /// until the next call.
    tokens: Buffer,
    /// Two fp64 values per token.
    rows: Buffer,
    hidden_size: i64,
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
    ///
    /// The result holds until the next call of a method of this object.
    pub fn gather(&self, stream: &Tensor, tokens: i64) -> Result<Tensor, CommError> {
        match self {
            Self::On(part) if part.split.sequence => part.all_gather(stream, tokens),
            _ => Ok(stream.shallow_clone()),
        }
    }

    /// Where a part's sum of `tokens` rows goes: `[T, D]`, not initialised. It overwrites what was gathered.
    pub fn partial(&self, tokens: i64, like: &Tensor, width: i64) -> Tensor {
        match self {
            Self::Off => Tensor::empty([tokens, width], (like.kind(), like.device())),
            Self::On(part) => part.view(tokens),
        }
    }

    /// Sums `partial` (`[T, D]`, made by [`TensorParallel::partial`]) over the ranks and returns this rank's stream of
    /// it. Collective over tp. The result holds until the next call of a method of this object.
    pub fn reduce(&self, partial: Tensor) -> Result<Tensor, CommError> {
        match self {
            Self::Off => Ok(partial),
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
            Self::On(part) => Ok(residual + part.reduce(partial)?),
        }
    }

    /// `tensor`, or a copy of it where it would not outlast the next call.
    pub fn keep(&self, tensor: Tensor) -> Tensor {
        match self {
            Self::On(part) if tensor.data_ptr() == part.view(1).data_ptr() => tensor.copy(),
            _ => tensor,
        }
    }

    /// The sum or maximum of each value over the ranks. `values`: fp64, at most two per token of a micro-batch.
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

    fn all_gather(&self, stream: &Tensor, tokens: i64) -> Result<Tensor, CommError> {
        let padded = self.padded(tokens);
        self.own(padded).copy_(stream);
        self.group.all_gather(self.elements(padded))?.wait()?;
        Ok(self.view(tokens))
    }

    fn reduce(&self, partial: Tensor) -> Result<Tensor, CommError> {
        assert_eq!(partial.data_ptr(), self.view(1).data_ptr(), "a partial sum lies in the group's buffer");
        let tokens = partial.size()[0];
        if !self.split.sequence {
            self.group.all_reduce(self.elements(tokens), ReduceOp::Sum)?.wait()?;
            return Ok(partial);
        }
        let padded = self.padded(tokens);
        let _ = self.view(padded).narrow(0, tokens, padded - tokens).zero_();
        self.group.reduce_scatter(self.elements(padded), ReduceOp::Sum)?.wait()?;
        Ok(self.own(padded))
    }
}
