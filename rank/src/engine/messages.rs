//! The messages between pipeline stages: activations forward, their gradients backward. Sending does not wait, so that
//! a stage goes on with its next pass; receiving does, and that wait is the pipeline's bubble: of the host, or of the GPU beside it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use comm::{Channel, CommError, Work};
use proto::memory::Exchange;
use proto::pipeline::MESSAGES_UNDER_WAY;
use proto::plan::Plan;
use tch::Tensor;

use crate::device::{Buffer, compute_kind};
use crate::groups::Group;
use crate::ranks::Ranks;
use crate::shake::Shake;

/// This stage's messages to and from its neighbours.
pub(super) struct Messages {
    pp: Group,
    hidden_size: usize,
    forward: Lane,
    backward: Lane,
    waited: Duration,
}

/// One direction.
struct Lane {
    channel: Channel,
    from: usize,
    to: usize,
    arrived: Buffer,
    buffers: Vec<Buffer>,
    /// The oldest first. The buffers take turns, so the oldest is in the one that is next.
    under_way: VecDeque<Work>,
    next: usize,
    shake: Shake,
}

impl Messages {
    /// Allocates the buffers. Does not block.
    pub fn new(plan: &Plan, ranks: &Ranks) -> Result<Self, CommError> {
        let groups = &ranks.groups;
        let (numel, kind) = (Exchange::of(plan, groups.coord).message, compute_kind(plan.model.compute_dtype));
        let (stages, stage) = (groups.mesh.pp, groups.coord.pp);
        let (next, previous) = ((stage + 1) % stages, (stage + stages - 1) % stages);
        let buffer = || ranks.allocate(kind, numel);
        let lane = |channel, from, to| -> Result<Lane, CommError> {
            let buffers = if stages > 1 { MESSAGES_UNDER_WAY } else { 0 };
            let buffers = (0..buffers).map(|_| buffer()).collect::<Result<_, _>>()?;
            Ok(Lane {
                channel,
                from,
                to,
                arrived: buffer()?,
                buffers,
                under_way: VecDeque::new(),
                next: 0,
                shake: ranks.shake.clone(),
            })
        };
        Ok(Self {
            forward: lane(Channel::Forward, previous, next)?,
            backward: lane(Channel::Backward, next, previous)?,
            pp: groups.pp.clone(),
            hidden_size: plan.model.config.hidden_size,
            waited: Duration::ZERO,
        })
    }

    /// Sends activations (`[S, D]`) to the next stage.
    pub fn send_forward(&mut self, x: &Tensor) -> Result<(), CommError> {
        self.waited += self.forward.send(&self.pp, x)?;
        Ok(())
    }

    /// Activations of `rows` rows from the stage before: `[S, D]`. What computes waits for them.
    pub fn recv_forward(&mut self, rows: i64) -> Result<Tensor, CommError> {
        let (x, waited) = self.forward.recv(&self.pp, rows as usize, self.hidden_size)?;
        self.waited += waited;
        Ok(x)
    }

    /// Sends gradients (`[S, D]`) to the stage before.
    pub fn send_backward(&mut self, dx: &Tensor) -> Result<(), CommError> {
        self.waited += self.backward.send(&self.pp, dx)?;
        Ok(())
    }

    /// Gradients of `rows` rows from the next stage: `[S, D]`. What computes waits for them.
    pub fn recv_backward(&mut self, rows: i64) -> Result<Tensor, CommError> {
        let (dy, waited) = self.backward.recv(&self.pp, rows as usize, self.hidden_size)?;
        self.waited += waited;
        Ok(dy)
    }

    /// Time that the host spent waiting for neighbours since the last call.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }
}

impl Lane {
    /// Returns how long it waited for a free buffer.
    fn send(&mut self, pp: &Group, x: &Tensor) -> Result<Duration, CommError> {
        let started = Instant::now();
        if self.under_way.len() == self.buffers.len() {
            let oldest = self.under_way.pop_front().expect("a stage with a neighbour has buffers");
            oldest.wait()?;
        }
        let waited = started.elapsed();
        self.shake.delay();
        let buffer = &mut self.buffers[self.next];
        self.shake.release(buffer);
        let rows = x.size()[0] as usize;
        buffer.view(0, &[rows, x.size()[1] as usize]).copy_(x);
        self.under_way.push_back(pp.send(buffer.operand().slice(0, x.numel()), self.to, self.channel)?);
        self.next = (self.next + 1) % self.buffers.len();
        Ok(waited)
    }

    /// Returns the message and how long it waited for it.
    fn recv(&mut self, pp: &Group, rows: usize, width: usize) -> Result<(Tensor, Duration), CommError> {
        let started = Instant::now();
        pp.recv(self.arrived.operand().slice(0, rows * width), self.from, self.channel)?.wait()?;
        let waited = started.elapsed();
        let message = self.arrived.view(0, &[rows, width]).copy();
        self.shake.release(&mut self.arrived);
        Ok((message, waited))
    }
}
