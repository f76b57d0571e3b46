//! Updates units whose state is in the host's memory on a thread of its own, one after the other, while the main thread goes on with the
//! next step: a unit's state is away until somebody needs it, and who does waits for that unit alone.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use tch::Tensor;

use super::optimizer_state::{OptimizerState, Piece};
use crate::kernels::{AdamWConstants, Update};

/// One unit's update.
pub(super) struct Job {
    pub unit: usize,
    /// Away from the unit until the job is done.
    pub state: OptimizerState,
    /// Of the unit, all that is trained.
    pub pieces: Vec<Piece>,
    /// What gradients are multiplied by first.
    pub clip: f32,
    pub constants: AdamWConstants,
}

/// The thread, and what it has been given.
pub(super) struct Updater {
    /// `None` once it is to end.
    jobs: Option<Sender<Job>>,
    done: Receiver<(usize, OptimizerState)>,
    /// By unit: what it has given back and nobody has asked for.
    returned: Vec<Option<OptimizerState>>,
    /// By unit: whether it has been given and not asked for.
    is_away: Vec<bool>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Updater {
    /// Starts the thread.
    pub fn new(num_units: usize) -> io::Result<Self> {
        let (jobs, given) = mpsc::channel::<Job>();
        let (finished, done) = mpsc::channel();
        let ends = Arc::new(AtomicBool::new(false));
        let is_to_end = ends.clone();
        let work = move || {
            for Job { unit, state, pieces, clip, constants } in given {
                // Nothing is drawn where masters and moments are fp32.
                let update = Update { clip: Tensor::from(clip).into(), constants, seed: 0 };
                for piece in &pieces {
                    if is_to_end.load(Relaxed) {
                        return;
                    }
                    state.apply(&update, piece);
                }
                if finished.send((unit, state)).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("update".into()).spawn(work)?;
        Ok(Self {
            jobs: Some(jobs),
            done,
            returned: (0..num_units).map(|_| None).collect(),
            is_away: vec![false; num_units],
            ends,
            thread: Some(thread),
        })
    }

    /// Whether a unit's state was given and not asked for.
    pub fn is_away(&self, unit: usize) -> bool {
        self.is_away[unit]
    }

    /// Updates a unit after those that it was given before. Does not wait for it.
    pub fn start(&mut self, job: Job) {
        self.is_away[job.unit] = true;
        self.jobs.as_ref().expect("it has not ended").send(job).unwrap_or_else(|_| lost());
    }

    /// A unit's state, updated. `None` where it is not away. Waits for it.
    pub fn finish(&mut self, unit: usize) -> Option<OptimizerState> {
        if !std::mem::take(&mut self.is_away[unit]) {
            return None;
        }
        while self.returned[unit].is_none() {
            let (other, state) = self.done.recv().unwrap_or_else(|_| lost());
            self.returned[other] = Some(state);
        }
        self.returned[unit].take()
    }
}

/// The thread has panicked, and has said why.
fn lost() -> ! {
    panic!("the thread that updates has ended");
}

impl Drop for Updater {
    fn drop(&mut self) {
        self.ends.store(true, Relaxed);
        self.jobs = None;
        // What it has not done yet nobody needs any more.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::device::{Buffer, HOST};

    const CONSTANTS: AdamWConstants = AdamWConstants {
        decay: 0.5,
        one_minus_beta1: 1.0,
        beta2: 0.0,
        one_minus_beta2: 1.0,
        bias_correction2_sqrt: 1.0,
        eps: 0.0,
        step_size: 0.25,
    };

    fn state(grad: f64) -> OptimizerState {
        let buffer = |kind, value: f64| {
            let buffer = Buffer::zeros(HOST, kind, 6);
            let _ = buffer.range(0..6).fill_(value);
            buffer
        };
        OptimizerState {
            master: Some(buffer(Kind::Float, 1.0)),
            kept_grads: Some(buffer(Kind::Float, grad)),
            exp_avg: buffer(Kind::Float, 0.0),
            exp_avg_sq: buffer(Kind::Float, 0.0),
            rounded: Some(buffer(Kind::BFloat16, 1.0)),
        }
    }

    fn job(unit: usize, grad: f64) -> Job {
        // The last element is padding.
        let pieces = vec![Piece { range: 0..2, decays: true }, Piece { range: 2..5, decays: false }];
        Job { unit, state: state(grad), pieces, clip: 2.0, constants: CONSTANTS }
    }

    #[test]
    fn units_come_back_updated_in_any_order_and_once() {
        let mut updater = Updater::new(4).unwrap();
        for unit in [0, 2, 3] {
            updater.start(job(unit, if unit == 2 { -3.0 } else { 3.0 }));
        }
        for (unit, expected) in [(3, [0.25, 0.25, 0.75, 0.75, 0.75, 1.0]), (2, [0.75, 0.75, 1.25, 1.25, 1.25, 1.0])] {
            let updated = updater.finish(unit).expect("it is away");
            for buffer in [updated.master, updated.rounded].map(Option::unwrap) {
                assert_eq!(Vec::<f32>::try_from(buffer.range(0..6).to_kind(Kind::Float)).unwrap(), expected);
            }
            assert!(updater.finish(unit).is_none(), "it is back");
        }
        assert!(updater.finish(1).is_none(), "it was never away");
        updater.start(job(2, 3.0));
        assert!(updater.finish(2).is_some() && updater.finish(0).is_some());
    }

    #[test]
    fn what_is_under_way_does_not_keep_it_from_ending() {
        let mut updater = Updater::new(2).unwrap();
        // A second's work at least.
        let long = vec![Piece { range: 0..5, decays: false }; 1_000_000];
        updater.start(Job { pieces: long, ..job(0, 1.0) });
        let next = job(1, 3.0);
        let master = next.state.master.as_ref().expect("it has one").range(0..6);
        updater.start(next);
        drop(updater);
        assert_eq!(Vec::<f32>::try_from(master).unwrap(), [1.0; 6], "what had not begun is left");
    }
}
