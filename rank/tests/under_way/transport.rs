//! What a rank asks of the world, done in order by a thread of its own: over shared memory, late on purpose.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use comm::{Collective, CommError, ShmOptions, ShmWorld, Work};

/// The longest delay: longer than a unit of the tiny model computes.
const DELAY_MAX: Duration = Duration::from_millis(2);

/// When operations are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As soon as those before are done, and after a delay drawn from this seed.
    Delayed(u64),
    /// Not before the rank waits for them, or for a later one: as late as a backend may.
    AtTheLast,
}

/// An operation. It blocks until the other ranks have done their part.
type Job = Box<dyn FnOnce(&Transport) + Send>;

/// The thread's own side: a place in a world of shared memory.
pub struct Transport {
    pub world: ShmWorld,
    /// By slot.
    pub groups: RefCell<HashMap<usize, Rc<dyn Collective>>>,
    /// Messages that nobody has waited for yet, by ticket.
    pub sent: RefCell<HashMap<u64, Work>>,
}

/// How far the thread is. Jobs are numbered from 1 and done in order, so two numbers say it all.
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

struct GateState {
    /// The last job that may be done.
    released: u64,
    /// The last job that was done.
    finished: u64,
}

/// The rank's side.
pub struct Line {
    jobs: Option<Sender<Job>>,
    gate: Arc<Gate>,
    thread: Option<JoinHandle<()>>,
}

/// A job's answer, once it is done.
pub struct Ticket<T> {
    number: u64,
    answer: Receiver<T>,
    gate: Arc<Gate>,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().expect("no panic while it is held")
    }

    fn release(&self, number: u64) {
        let mut state = self.state();
        state.released = state.released.max(number);
        self.changed.notify_all();
    }

    fn await_release(&self, number: u64) {
        let wait = self.changed.wait_while(self.state(), |state| state.released < number);
        drop(wait.expect("no panic while it is held"));
    }
}

impl Line {
    /// Joins the world on a new thread. Returns once all ranks have.
    pub fn connect(options: ShmOptions, pace: Pace) -> Result<Self, CommError> {
        let released = if pace == Pace::AtTheLast { 0 } else { u64::MAX };
        let gate = Gate { state: Mutex::new(GateState { released, finished: 0 }), changed: Condvar::new() };
        let gate = Arc::new(gate);
        let (jobs, queue) = channel();
        let (joined, has_joined) = channel();
        let of_thread = gate.clone();
        let thread = thread::spawn(move || {
            let rank = options.rank;
            match ShmWorld::join(options) {
                Ok(world) => {
                    joined.send(Ok(())).expect("the rank waits");
                    let transport = Transport { world, groups: RefCell::default(), sent: RefCell::default() };
                    transport.run(&queue, &of_thread, Delays::new(pace, rank));
                }
                Err(error) => joined.send(Err(error)).expect("the rank waits"),
            }
        });
        has_joined.recv().expect("the thread answers")?;
        Ok(Self { jobs: Some(jobs), gate, thread: Some(thread) })
    }

    /// Has `job` done after all before it. `number`: one more than the last. Does not block.
    pub fn submit<T: Send + 'static>(
        &self,
        number: u64,
        job: impl FnOnce(&Transport) -> T + Send + 'static,
    ) -> Ticket<T> {
        let (sender, answer) = channel();
        let job: Job = Box::new(move |transport| {
            // Whoever has dropped the ticket does not want to know.
            let _ = sender.send(job(transport));
        });
        self.jobs.as_ref().expect("until it is dropped").send(job).expect("the thread lives");
        Ticket { number, answer, gate: self.gate.clone() }
    }

    /// Whether job `number` is done.
    pub fn is_finished(&self, number: u64) -> bool {
        self.gate.state().finished >= number
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        drop(self.jobs.take());
        self.gate.release(u64::MAX);
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed when it happened.
            let _ = thread.join();
        }
    }
}

impl<T> Ticket<T> {
    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn is_done(&self) -> bool {
        self.gate.state().finished >= self.number
    }

    /// Blocks until the job is done.
    pub fn wait(self) -> T {
        self.gate.release(self.number);
        self.answer.recv().expect("the thread does every job")
    }
}

impl Transport {
    fn run(&self, jobs: &Receiver<Job>, gate: &Gate, mut delays: Delays) {
        for (before, job) in (0..).zip(jobs) {
            gate.await_release(before + 1);
            delays.pass();
            job(self);
            gate.state().finished = before + 1;
        }
    }
}

/// Xorshift (Marsaglia, 2003), as times.
struct Delays(Option<u64>);

impl Delays {
    fn new(pace: Pace, rank: usize) -> Self {
        Self(match pace {
            Pace::Delayed(seed) => Some((seed ^ (rank as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).max(1)),
            Pace::AtTheLast => None,
        })
    }

    fn pass(&mut self) {
        let Some(x) = &mut self.0 else { return };
        *x ^= *x << 13;
        *x ^= *x >> 7;
        *x ^= *x << 17;
        thread::sleep(DELAY_MAX.mul_f64((*x >> 11) as f64 / (1u64 << 53) as f64));
    }
}
