//! A world over NCCL: its groups, its order, and how it ends.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};
use std::{slice, thread};

use comm::nccl::{NcclOptions, NcclWorld, Point, SCRATCH_BYTES, ShareId, Stream, Streams, UniqueId};
use comm::{Buffer, Channel, Collective, CommError, DType, Op, ReduceOp, Result, ShmOptions, UseOf, Work, World};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Fake, LONG};

/// More calls than a group compares.
const MANY: usize = 1100;

type UnderWay = unsafe extern "C" fn(*const c_int) -> c_int;

/// Streams are counters of what is under way; what is computed is done at once, by the thread that asks for it.
struct Counters(UnderWay);

/// The library sees the first field.
#[repr(C)]
struct Counter {
    under_way: c_int,
    /// Calls that the stream was given.
    given: AtomicI64,
}

impl Streams for Counters {
    fn open(&self) -> Stream {
        let counter = Box::into_raw(Box::new(Counter { under_way: 0, given: AtomicI64::new(0) }));
        // SAFETY: the library counts there, and it stays.
        unsafe { Stream::new(counter.cast::<c_void>()) }
    }

    fn follow(&self, _stream: Stream) {}

    /// Asked for after each call.
    fn point(&self, stream: Stream) -> Arc<dyn Point> {
        let counter = stream.as_ptr().cast::<Counter>().cast_const();
        // SAFETY: a counter that stays.
        let number = unsafe { (*counter).given.fetch_add(1, Relaxed) + 1 };
        Arc::new(Given { counter: counter.expose_provenance(), number, under_way: self.0 })
    }
}

#[derive(Debug)]
struct Given {
    counter: usize,
    number: i64,
    under_way: UnderWay,
}

impl Point for Given {
    fn is_reached(&self) -> bool {
        let counter: *const Counter = std::ptr::with_exposed_provenance(self.counter);
        // SAFETY: a counter that stays, and the library's function. Calls of a stream are done in its order.
        unsafe { (*counter).given.load(Relaxed) - i64::from((self.under_way)(counter.cast())) >= self.number }
    }

    fn precede(&self) {
        let started = Instant::now();
        while !self.is_reached() {
            assert!(started.elapsed() < LONG, "it is never done");
            thread::yield_now();
        }
    }
}

const ARENA_BYTES: usize = 1 << 16;

impl Fake {
    fn counters(&self) -> Rc<dyn Streams> {
        // SAFETY: the function as `fake.c` declares it; the library stays loaded as long as the test.
        let under_way: UnderWay = unsafe { *self.controls.get(b"fake_under_way").expect("there") };
        Rc::new(Counters(under_way))
    }

    fn join(&self, ranks: ShmOptions, share_id: &ShareId) -> Result<NcclWorld> {
        let arena: &'static mut [u64] = Box::leak(vec![0u64; (ARENA_BYTES + SCRATCH_BYTES) / 8 + 8].into_boxed_slice());
        let start = NonNull::from(arena).cast::<u8>();
        // SAFETY: there are 64 bytes more than the arena and the scratch have.
        let arena = unsafe { start.add(start.align_offset(64)) };
        // SAFETY: it is this world's alone, zero, and stays.
        unsafe { NcclWorld::join(NcclOptions { ranks, nccl: self.nccl, arena, streams: self.counters(), share_id }) }
    }

    /// Runs `body` on each rank of a world.
    fn world<T: Send>(&self, size: usize, timeout: Duration, body: impl Fn(&NcclWorld) -> T + Sync) -> Vec<T> {
        let fd = memfd_create("comm-test", MFdFlags::MFD_CLOEXEC).expect("memory");
        let (shared, all_know) = (Mutex::new(None), Barrier::new(size));
        let share_id = |id: Option<UniqueId>, _: &dyn Fn() -> Option<CommError>| {
            if id.is_some() {
                *shared.lock().expect("nobody panics") = id;
            }
            all_know.wait();
            shared.lock().expect("nobody panics").ok_or_else(|| "rank 0 has none".to_owned())
        };
        thread::scope(|scope| {
            let (body, share_id, fd) = (&body, &share_id, &fd);
            let run = |rank| {
                move || {
                    let fd = fd.try_clone().expect("a descriptor");
                    let ranks = ShmOptions { rank, world_size: size, fd, arena_bytes: ARENA_BYTES, timeout };
                    let world = self.join(ranks, share_id).expect("all join");
                    let result = body(&world);
                    if world.check().is_ok() {
                        world.leave();
                    }
                    result
                }
            };
            let ranks: Vec<_> = (0..size).map(|rank| scope.spawn(run(rank))).collect();
            ranks.into_iter().map(|rank| rank.join().expect("it does not panic")).collect()
        })
    }
}

fn values(world: &NcclWorld, buf: Buffer) -> Vec<f32> {
    assert_eq!(buf.dtype(), DType::F32);
    // SAFETY: as many elements of the arena, and nothing is under way on them.
    unsafe { slice::from_raw_parts(world.as_ptr(buf).as_ptr().cast(), buf.numel()) }.to_vec()
}

/// A buffer that holds the rank's number and the element's.
fn filled(world: &NcclWorld, numel: usize) -> Buffer {
    let buf = world.alloc(DType::F32, numel).expect("the arena suffices");
    let rank = world.rank() as f32;
    // SAFETY: as in `values`, and nobody else has it.
    let to = unsafe { slice::from_raw_parts_mut(world.as_ptr(buf).as_ptr().cast::<f32>(), numel) };
    to.iter_mut().enumerate().for_each(|(idx, value)| *value = 10.0 * rank + idx as f32);
    buf
}

fn all_reduce(world: &NcclWorld, group: &dyn Collective, buf: Buffer) -> Result<f32> {
    group.all_reduce(buf, ReduceOp::Sum)?.wait()?;
    Ok(values(world, buf)[0])
}

#[test]
fn every_operation_of_a_group_does_what_it_says() {
    let fake = Fake::new();
    let done = fake.world(4, LONG, |world| {
        let all = world.world();
        let (rank, size) = (all.rank(), all.size());
        let reduced = filled(world, 3);
        all.all_reduce(reduced, ReduceOp::Max)?.wait()?;
        let scattered = filled(world, 8);
        all.reduce_scatter(scattered, ReduceOp::Sum)?.wait()?;
        let gathered = filled(world, 8);
        all.all_gather(gathered)?.wait()?;
        let told = filled(world, 2);
        all.broadcast(told, 2)?.wait()?;
        let mut sum = [rank as f64];
        all.all_reduce_scalars(&mut sum, ReduceOp::Sum)?;
        all.barrier()?;
        let refused = all.all_to_all(gathered).expect_err("NCCL has none in place");
        assert_eq!(refused, CommError::Unsupported { op: Op::AllToAll, backend: "nccl" });
        let row = world.group(1 + rank / 2, &[rank / 2 * 2, rank / 2 * 2 + 1], UseOf::Collectives)?;
        let column = world.group(8 + rank % 2, &[rank % 2, rank % 2 + 2], UseOf::Collectives)?;
        let of_row = all_reduce(world, &*row, filled(world, 1))?;
        let of_column = all_reduce(world, &*column, filled(world, 1))?;
        // It needs no communicator of its own.
        let same = world.group(20, &[0, 1, 2, 3], UseOf::Collectives)?;
        assert_eq!(all_reduce(world, &*same, filled(world, 1))?, 60.0);
        assert_eq!((size, values(world, reduced), sum), (4, vec![30.0, 31.0, 32.0], [6.0]));
        let slice = [2 * rank, 2 * rank + 1].map(|idx| 60.0 + 4.0 * idx as f32);
        assert_eq!(values(world, scattered)[2 * rank..2 * rank + 2], slice);
        let expected: Vec<f32> = (0..8).map(|idx| 10.0 * (idx / 2) as f32 + idx as f32).collect();
        assert_eq!((values(world, gathered), values(world, told)), (expected, vec![20.0, 21.0]));
        Ok::<_, CommError>((of_row, of_column))
    });
    let expected = [(10.0, 20.0), (10.0, 40.0), (50.0, 20.0), (50.0, 40.0)];
    assert_eq!(done, expected.map(Ok));
    assert_eq!((fake.get("aborted"), fake.get("destroyed")), (0, 12), "all leave in good order");
}

/// In a ring each sends before it receives, which in one communicator would wait for ever; a message and its answer as well.
#[test]
fn stages_in_a_ring_send_before_they_receive() {
    for size in [2, 3, 4, 5] {
        let fake = Fake::new();
        let all: Vec<usize> = (0..size).collect();
        let received = fake.world(size, LONG, |world| {
            let ring = world.group(1, &all, UseOf::Messages)?;
            let (next, before) = ((ring.rank() + 1) % size, (ring.rank() + size - 1) % size);
            let mut received = vec![];
            for channel in [Channel::Forward, Channel::Backward] {
                let (to, from) = if channel == Channel::Forward { (next, before) } else { (before, next) };
                let sent: Vec<Work> =
                    (0..2).map(|_| ring.send(filled(world, 2), to, channel)).collect::<Result<_>>()?;
                for _ in 0..2 {
                    let arrived = world.alloc(DType::F32, 2)?;
                    ring.recv(arrived, from, channel)?.wait()?;
                    received.push(values(world, arrived)[1]);
                }
                sent.into_iter().try_for_each(Work::wait)?;
            }
            Ok::<_, CommError>(received)
        });
        for (rank, received) in received.into_iter().enumerate() {
            let [before, next] = [(rank + size - 1) % size, (rank + 1) % size].map(|from| 10.0 * from as f32 + 1.0);
            assert_eq!(received, Ok(vec![before, before, next, next]), "rank {rank} of {size}");
        }
    }
}

#[test]
fn a_rank_comes_to_each_call_once() {
    let fake = Fake::new();
    let arrivals = fake.world(2, LONG, |world| {
        let (pair, buf) = (world.group(1, &[0, 1], UseOf::Messages).expect("both ask"), filled(world, 1));
        let count = Rc::new(Cell::new(0));
        let counted = count.clone();
        world.on_arrival(Box::new(move || counted.set(counted.get() + 1)));
        (0..MANY).for_each(|_| _ = all_reduce(world, &*pair, buf).expect("both call it"));
        pair.barrier().expect("both come");
        let work = match pair.rank() {
            0 => pair.send(buf, 1, Channel::Forward),
            _ => pair.recv(buf, 0, Channel::Forward),
        };
        work.and_then(Work::wait).expect("both come");
        count.get()
    });
    assert_eq!(arrivals, [MANY + 2; 2]);
}

#[test]
fn ranks_that_call_different_things_all_know() {
    let fake = Fake::new();
    let errors = fake.world(3, LONG, |world| {
        let buf = filled(world, 6);
        let all = world.world();
        all_reduce(world, &*all, buf).expect("all call it");
        let part = if world.rank() == 2 { buf.slice(0, 3) } else { buf };
        all_reduce(world, &*all, part).expect_err("they differ")
    });
    assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
    let CommError::Mismatch { rank, theirs, .. } = &errors[0] else { panic!("{:?}", errors[0]) };
    assert_eq!((*rank, theirs.numel, theirs.op), (2, 3, Op::AllReduce));
}

/// COM-2: where calls are not compared nobody waits on the host, and the watchdog sees who has not come.
#[test]
fn whoever_does_not_come_is_named() {
    let fake = Fake::new();
    let errors = fake.world(3, LONG, |world| {
        let (all, buf) = (world.world(), filled(world, 1));
        (0..MANY).for_each(|_| _ = all_reduce(world, &*all, buf).expect("all call it"));
        world.set_timeout(Duration::from_millis(100));
        if world.rank() == 1 {
            // It computes for ever, as far as the others can tell; it looks up from time to time.
            return wait_for_fault(world);
        }
        let started = Instant::now();
        let work = all.all_reduce(buf, ReduceOp::Sum).expect("it is enqueued");
        let error = work.wait().expect_err("rank 1 never comes");
        assert!(started.elapsed() < LONG / 2);
        error
    });
    assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
    let CommError::Timeout { op, seq, missing, timeout, last_seen } = &errors[0] else { panic!("{:?}", errors[0]) };
    assert_eq!((*op, *seq, &missing[..]), (Op::AllReduce, MANY as u64 + 1, &[1][..]));
    assert_eq!(*timeout, Duration::from_millis(100));
    assert!(last_seen.starts_with("rank 1 "), "{last_seen}");
}

fn wait_for_fault(world: &NcclWorld) -> CommError {
    let started = Instant::now();
    loop {
        if let Err(error) = world.check() {
            return error;
        }
        assert!(started.elapsed() < LONG, "nobody notices");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_sender_whose_receiver_does_not_come_names_it() {
    let fake = Fake::new();
    let errors = fake.world(2, LONG, |world| {
        let pair = world.group(1, &[0, 1], UseOf::Messages).expect("both ask");
        let buf = filled(world, 1);
        world.set_timeout(Duration::from_millis(100));
        if world.rank() == 1 {
            return wait_for_fault(world);
        }
        pair.send(buf, 1, Channel::Forward).expect("it is enqueued").wait().expect_err("rank 1 never comes")
    });
    for error in errors {
        let CommError::Timeout { op, seq: 1, missing, .. } = error else { panic!("{error:?}") };
        assert_eq!((op, &missing[..]), (Op::Send(Channel::Forward), &[1][..]));
    }
}

#[test]
fn whoever_is_waited_for_on_the_host_is_named() {
    let fake = Fake::new();
    let errors = fake.world(2, LONG, |world| {
        let pair = world.group(1, &[0, 1], UseOf::Messages).expect("both ask");
        let buf = filled(world, 1);
        pair.barrier().expect("both come");
        world.set_timeout(Duration::from_millis(100));
        if world.rank() == 1 {
            return wait_for_fault(world);
        }
        // The call is in progress until its time is over, as one is that connects two ranks.
        fake.set("call_polls", i32::MAX);
        pair.recv(buf, 1, Channel::Backward).expect_err("rank 1 never comes")
    });
    for error in errors {
        let CommError::Timeout { op, missing, .. } = error else { panic!("{error:?}") };
        assert_eq!((op, &missing[..]), (Op::Recv(Channel::Backward), &[1][..]));
    }
}

#[test]
fn a_world_that_is_dropped_before_it_is_left_gives_up() {
    let fake = Fake::new();
    let fd = memfd_create("comm-test", MFdFlags::MFD_CLOEXEC).expect("memory");
    let (id, timeout) = (fake.id(), LONG);
    let share_id = |_: Option<UniqueId>, _: &dyn Fn() -> Option<CommError>| Ok(id);
    let join = |rank| {
        let fd = fd.try_clone().expect("a descriptor");
        fake.join(ShmOptions { rank, world_size: 2, fd, arena_bytes: ARENA_BYTES, timeout }, &share_id)
            .expect("both join")
    };
    thread::scope(|scope| {
        scope.spawn(|| drop(join(1)));
        let world = join(0);
        let error = wait_for_fault(&world);
        assert_eq!(error, CommError::Aborted { rank: 1, reason: "it has ended before the others".into() });
    });
    assert_eq!(fake.get("destroyed"), 0);
}

#[test]
fn whoever_gives_up_wakes_those_whose_gpus_wait_for_it() {
    let fake = Fake::new();
    let told = fake.world(3, LONG, |world| {
        let (all, buf) = (world.world(), filled(world, 1));
        (0..MANY).for_each(|_| _ = all_reduce(world, &*all, buf).expect("all call it"));
        all.barrier().expect("all come");
        if world.rank() == 2 {
            world.abort("enough");
            return (world.check().expect_err("it has given up"), Duration::ZERO);
        }
        let started = Instant::now();
        let error = all_reduce(world, &*all, buf).expect_err("rank 2 never comes");
        (error, started.elapsed())
    });
    for (error, took) in told {
        assert_eq!(error, CommError::Aborted { rank: 2, reason: "enough".into() });
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    assert_eq!(fake.get("destroyed"), 0, "nothing ends in good order");
}

#[test]
fn what_nccl_says_on_one_rank_is_known_to_all() {
    let fake = Fake::new();
    let errors = fake.world(2, LONG, |world| {
        let (all, buf) = (world.world(), filled(world, 1));
        all_reduce(world, &*all, buf).expect("all call it");
        if world.rank() == 0 {
            fake.set("call_code", 4);
        }
        all.barrier().expect("both come");
        let error = all_reduce(world, &*all, buf).expect_err("NCCL refuses it");
        assert_eq!(world.check(), Err(error.clone()));
        error
    });
    for error in errors {
        let CommError::Aborted { reason, .. } = &error else { panic!("{error:?}") };
        assert_eq!(reason, "ncclAllReduce: some error (code 4): a bad argument");
    }
}

#[test]
fn a_world_without_an_id_is_not_joined() {
    let fake = Fake::new();
    let fd = memfd_create("comm-test", MFdFlags::MFD_CLOEXEC).expect("memory");
    let ranks = ShmOptions { rank: 0, world_size: 1, fd, arena_bytes: ARENA_BYTES, timeout: LONG };
    let error = fake.join(ranks, &|_, _| Err("the launcher is gone".to_owned())).err().expect("it is refused");
    let reason = "there is no id to enter NCCL by: the launcher is gone".to_owned();
    assert_eq!(error, CommError::Aborted { rank: 0, reason });
}
