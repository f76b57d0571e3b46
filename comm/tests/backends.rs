//! What a backend outside this crate builds on: works that another thread completes, and worlds over memory of their own.

#![allow(unsafe_code, reason = "a world vouches for its pointers")]

use std::cell::Cell;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use comm::{
    ALIGN_BYTES, Buffer, Collective, CommError, DType, FlightEntry, FlightState, Op, Pending, ReduceOp, Result,
    SoloGroup, UseOf, Work, World,
};

/// An operation that a thread completes once it is told to.
#[derive(Debug)]
struct OnAThread(JoinHandle<Result<()>>);

impl OnAThread {
    fn start(outcome: Receiver<Result<()>>) -> Work {
        Work::pending(OnAThread(std::thread::spawn(move || outcome.recv().expect("the test says how it ends"))))
    }
}

impl Pending for OnAThread {
    fn is_done(&self) -> bool {
        self.0.is_finished()
    }

    fn wait(self: Box<Self>) -> Result<()> {
        self.0.join().expect("the thread ends")
    }
}

#[test]
fn a_work_ends_as_the_thread_that_completes_it_says() {
    let aborted = CommError::Aborted { rank: 3, reason: "enough".into() };
    for outcome in [Ok(()), Err(aborted)] {
        let (end, ends) = channel();
        let work = OnAThread::start(ends);
        assert!(!work.is_done());
        end.send(outcome.clone()).expect("the thread listens");
        while !work.is_done() {
            std::thread::yield_now();
        }
        assert_eq!(work.wait(), outcome);
    }
    assert!(Work::done().is_done());
    Work::done().wait().expect("it was done");
}

const ARENA_BYTES: usize = 4096;

#[repr(align(64))]
struct Arena(Cell<[u8; ARENA_BYTES]>);

/// A world of one on the heap, which counts its groups.
struct HeapWorld {
    arena: Box<Arena>,
    allocated_bytes: Cell<usize>,
    timeout: Cell<Duration>,
    fault: Cell<Option<CommError>>,
    num_groups: Cell<usize>,
}

impl HeapWorld {
    fn new() -> HeapWorld {
        HeapWorld {
            arena: Box::new(Arena(Cell::new([0; ARENA_BYTES]))),
            allocated_bytes: Cell::new(0),
            timeout: Cell::new(Duration::from_secs(1)),
            fault: Cell::new(None),
            num_groups: Cell::new(0),
        }
    }
}

// SAFETY: the arena is a box that lives as long as the world and never moves; its bytes are in a `Cell`, so they may be
// written through a shared reference. `alloc` hands out disjoint ranges of it, each at a multiple of 64 bytes.
unsafe impl World for HeapWorld {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn alloc(&self, dtype: DType, numel: usize) -> Result<Buffer> {
        let buf = Buffer::new(dtype, numel, self.allocated_bytes.get().next_multiple_of(ALIGN_BYTES));
        assert!(buf.offset_bytes() + buf.size_bytes() <= ARENA_BYTES);
        self.allocated_bytes.set(buf.offset_bytes() + buf.size_bytes());
        Ok(buf)
    }

    fn as_ptr(&self, buf: Buffer) -> NonNull<u8> {
        assert!(buf.offset_bytes() + buf.size_bytes() <= ARENA_BYTES);
        let base = NonNull::new(self.arena.0.as_ptr().cast::<u8>()).expect("a box is not null");
        // SAFETY: the offset was checked to lie in the arena.
        unsafe { base.add(buf.offset_bytes()) }
    }

    fn world(&self) -> Rc<dyn Collective> {
        Rc::new(SoloGroup)
    }

    fn group(&self, _slot: usize, ranks: &[usize], _use_of: UseOf) -> Result<Rc<dyn Collective>> {
        self.check()?;
        assert_eq!(ranks, [0]);
        self.num_groups.set(self.num_groups.get() + 1);
        Ok(self.world())
    }

    fn on_arrival(&self, _arrived: Box<dyn Fn()>) {}

    fn flight(&self, _rank: usize) -> FlightEntry {
        FlightEntry { pid: 0, state: FlightState::Idle, op: Op::Join, slot: 0, seq: 0, dtype: None, numel: 0 }
    }

    fn check(&self) -> Result<()> {
        let fault = self.fault.take();
        self.fault.set(fault.clone());
        fault.map_or(Ok(()), Err)
    }

    fn abort(&self, reason: &str) {
        self.fault.set(Some(CommError::Aborted { rank: 0, reason: reason.into() }));
    }

    fn set_timeout(&self, timeout: Duration) -> Duration {
        self.timeout.replace(timeout)
    }

    fn leave(&self) {}
}

#[test]
fn a_world_of_another_crate_serves_code_that_knows_no_backend() {
    let own = Rc::new(HeapWorld::new());
    let world: Rc<dyn World> = own.clone();
    let [first, second] = [3, 5].map(|numel| world.alloc(DType::F64, numel).expect("it fits"));
    assert_eq!((first.offset_bytes(), second.offset_bytes()), (0, ALIGN_BYTES));
    let at = world.as_ptr(second.slice(1, 1)).cast::<f64>();
    // SAFETY: the world vouches for the address, and nobody else has it.
    unsafe { at.write(2.5) };
    let group = world.group(1, &[0], UseOf::Collectives).expect("a group of one");
    group.all_reduce(second, ReduceOp::Sum).and_then(Work::wait).expect("alone");
    // SAFETY: as above.
    assert_eq!(unsafe { at.read() }, 2.5);
    assert_eq!(world.flight(0).to_string(), "has joined and called nothing yet");
    world.abort("enough");
    assert_eq!(world.check(), Err(CommError::Aborted { rank: 0, reason: "enough".into() }));
    assert!(world.group(2, &[0], UseOf::Collectives).is_err());
    assert_eq!(own.num_groups.get(), 1);
}
