//! Every wait ends (COM-2): faults that need no dead process.

mod common;

use std::time::Duration;

use comm::{
    Buffer, CHANNEL_CAPACITY, Channel, Collective, CommError, DType, FlightState, MAX_SLOTS, Op, ReduceOp, ShmOptions,
    ShmWorld, UseOf, Work, World,
};
use common::{PATIENT, input, new_memfd, options, read, run_ranks, write};

/// Long enough for ranks to meet, short enough to wait for.
const SHORT: Duration = Duration::from_millis(300);

/// Every rank has the same error, now and ever after.
fn check_poisoned(world: &ShmWorld, error: &CommError) {
    let group = world.world();
    assert_eq!(group.barrier().as_ref(), Err(error));
    assert_eq!(group.all_reduce_scalars(&mut [1.0], ReduceOp::Sum).as_ref(), Err(error));
    assert_eq!(world.check().as_ref(), Err(error));
    assert_eq!(world.group(9, &[world.rank()], UseOf::Collectives).err().as_ref(), Some(error));
}

fn all_equal(errors: &[CommError]) -> &CommError {
    assert!(errors.windows(2).all(|pair| pair[0] == pair[1]), "{errors:#?}");
    &errors[0]
}

#[test]
fn a_mismatch_is_the_same_error_on_all_members_and_changes_no_byte() {
    type Call = fn(&ShmWorld, comm::Buffer, bool) -> comm::Result<Work>;
    let check = |call: Call, expected: &str| {
        let errors = run_ranks(3, PATIENT, |world| {
            let buf = world.alloc(DType::F32, 3000).expect("alloc");
            write(world, buf, &input(DType::F32, world.rank(), 3000));
            world.world().barrier().expect("barrier");
            let error = call(world, buf, world.rank() == 1).expect_err("a mismatch");
            assert_eq!(read(world, buf), input(DType::F32, world.rank(), 3000));
            check_poisoned(world, &error);
            error
        });
        assert_eq!(all_equal(&errors).to_string(), expected);
    };
    check(
        |world, buf, odd| world.world().all_reduce(buf.slice(0, if odd { 300 } else { 3000 }), ReduceOp::Sum),
        "ranks disagree: rank 1 called all_reduce #2 sum of 300 f32 at byte 0, \
         rank 0 called all_reduce #2 sum of 3000 f32 at byte 0",
    );
    check(
        |world, buf, odd| {
            let group = world.world();
            if odd { group.all_gather(buf) } else { group.reduce_scatter(buf, ReduceOp::Max) }
        },
        "ranks disagree: rank 1 called all_gather #2 of 3000 f32 at byte 0, \
         rank 0 called reduce_scatter #2 max of 3000 f32 at byte 0",
    );
    check(
        |world, buf, odd| world.world().all_to_all(buf.slice(0, if odd { 300 } else { 3000 })),
        "ranks disagree: rank 1 called all_to_all #2 of 300 f32 at byte 0, \
         rank 0 called all_to_all #2 of 3000 f32 at byte 0",
    );
    check(
        |world, buf, odd| {
            let group = world.world();
            if odd { group.all_to_all(buf) } else { group.all_gather(buf) }
        },
        "ranks disagree: rank 1 called all_to_all #2 of 3000 f32 at byte 0, \
         rank 0 called all_gather #2 of 3000 f32 at byte 0",
    );
    check(
        |world, buf, odd| world.world().broadcast(buf, usize::from(odd)),
        "ranks disagree: rank 1 called broadcast #2 of 3000 f32 at byte 0 from root 1, \
         rank 0 called broadcast #2 of 3000 f32 at byte 0 from root 0",
    );
    check(
        |world, buf, odd| {
            let start = usize::from(odd);
            world.world().all_reduce(buf.slice(start, 8), ReduceOp::Sum)
        },
        "ranks disagree: rank 1 called all_reduce #2 sum of 8 f32 at byte 4, \
         rank 0 called all_reduce #2 sum of 8 f32 at byte 0",
    );
}

#[test]
fn a_message_of_another_size_is_an_error_on_both_sides() {
    let errors = run_ranks(2, PATIENT, |world| {
        let buf = world.alloc(DType::F32, 100).expect("alloc");
        let group = world.world();
        if world.rank() == 0 {
            let sent = [97, 98, 100, 99].map(|numel| group.send(buf.slice(0, numel), 1, Channel::Backward));
            let [first, second, third, fourth] = sent.map(|work| work.expect("there is room"));
            group.barrier().expect("four are under way");
            let error = third.wait().expect_err("a mismatch");
            second.wait().expect("it was taken before");
            assert_eq!(fourth.wait().as_ref(), Err(&error));
            first.wait().expect("it was taken before");
            check_poisoned(world, &error);
            return error;
        }
        group.barrier().expect("four are under way");
        let recv = |numel| group.recv(buf.slice(1, numel), 0, Channel::Backward).and_then(Work::wait);
        recv(97).and_then(|()| recv(98)).expect("equal sizes");
        recv(99).expect_err("a mismatch")
    });
    let expected = "ranks disagree: rank 1 called recv backward #3 of 99 f32 at byte 4, \
                    rank 0 called send backward #3 of 100 f32 at byte 0";
    assert_eq!(all_equal(&errors).to_string(), expected);
}

#[test]
fn a_receiver_that_never_takes_is_named_at_the_deadline() {
    // With one message the sender waits for its work, with more than there is room for it waits in the call.
    for num_messages in [1, CHANNEL_CAPACITY + 1] {
        let (done, wait_for_done) = std::sync::mpsc::channel();
        let wait_for_done = std::sync::Mutex::new(wait_for_done);
        let errors = run_ranks(2, SHORT, |world| {
            let buf = world.alloc(DType::F32, 10).expect("alloc");
            let group = world.world();
            group.barrier().expect("barrier");
            if world.rank() == 1 {
                wait_for_done.lock().expect("lock").recv().expect("rank 0 gives up");
                return group.recv(buf, 0, Channel::Forward).expect_err("poisoned");
            }
            let error = send_all(&*group, buf, num_messages).expect_err("nobody takes it");
            done.send(()).expect("rank 1 listens");
            check_poisoned(world, &error);
            error
        });
        let CommError::Timeout { op, seq, missing, last_seen, .. } = all_equal(&errors) else { panic!("{errors:?}") };
        assert_eq!((*op, *seq as usize), (Op::Send(Channel::Forward), num_messages));
        assert_eq!(*missing, [1]);
        assert_eq!(last_seen, "rank 1 is outside any call, the last was barrier #1");
    }
}

/// Sends `buf` so many times to rank 1, then waits for all.
fn send_all(group: &dyn Collective, buf: Buffer, num_messages: usize) -> comm::Result<()> {
    let sent: Vec<Work> =
        (0..num_messages).map(|_| group.send(buf, 1, Channel::Forward)).collect::<comm::Result<_>>()?;
    sent.into_iter().try_for_each(Work::wait)
}

#[test]
fn a_receiver_that_leaves_ends_the_wait_for_what_it_did_not_take() {
    for round in 0..200 {
        let num_messages = [1, CHANNEL_CAPACITY + 1][round % 2];
        let fd = new_memfd();
        std::thread::scope(|scope| {
            let [zero, one] = [0, 1].map(|rank| options(rank, 2, &fd, PATIENT));
            scope.spawn(move || ShmWorld::join(one).expect("join").leave());
            let world = ShmWorld::join(zero).expect("join");
            let buf = world.alloc(DType::F32, 1).expect("alloc");
            let error = send_all(&*world.world(), buf, num_messages).expect_err("nobody takes it");
            let (op, seq) = (Op::Send(Channel::Forward), num_messages as u64);
            assert_eq!(error, CommError::PeerLeft { rank: 1, op, seq });
        });
    }
}

#[test]
fn a_peer_that_did_its_part_may_leave_at_once() {
    for _ in 0..500 {
        let fd = new_memfd();
        std::thread::scope(|scope| {
            let [zero, one] = [0, 1].map(|rank| options(rank, 2, &fd, PATIENT));
            // It takes one message, sends one that nobody has asked for yet, and is gone.
            scope.spawn(move || {
                let world = ShmWorld::join(one).expect("join");
                let (group, buf) = (world.world(), world.alloc(DType::F32, 8).expect("alloc"));
                group.recv(buf, 0, Channel::Forward).and_then(Work::wait).expect("recv");
                write(&world, buf, &input(DType::F32, 1, 8));
                drop(group.send(buf, 0, Channel::Backward).expect("send"));
                world.leave();
            });
            let world = ShmWorld::join(zero).expect("join");
            let (group, buf) = (world.world(), world.alloc(DType::F32, 8).expect("alloc"));
            group.send(buf, 1, Channel::Forward).and_then(Work::wait).expect("it was taken");
            group.recv(buf, 1, Channel::Backward).and_then(Work::wait).expect("it was sent");
            assert_eq!(read(&world, buf), input(DType::F32, 1, 8));
        });
    }
}

#[test]
fn an_abort_ends_the_wait_for_a_message() {
    let errors = run_ranks(2, PATIENT, |world| {
        let buf = world.alloc(DType::F32, 1).expect("alloc");
        let group = world.world();
        let sent = group.send(buf, 1 - world.rank(), Channel::Forward).expect("send");
        group.barrier().expect("barrier");
        if world.rank() == 0 {
            world.abort("loss is NaN");
        }
        sent.wait().expect_err("aborted")
    });
    assert_eq!(*all_equal(&errors), CommError::Aborted { rank: 0, reason: "loss is NaN".into() });
}

#[test]
fn a_rank_that_left_waits_for_nothing_any_more() {
    let fd = new_memfd();
    std::thread::scope(|scope| {
        let [zero, one] = [0, 1].map(|rank| options(rank, 2, &fd, PATIENT));
        let (left, wait_for_left) = std::sync::mpsc::channel();
        scope.spawn(move || {
            let world = ShmWorld::join(zero).expect("join");
            let buf = world.alloc(DType::F32, 1).expect("alloc");
            let sent = world.world().send(buf, 1, Channel::Forward).expect("send");
            world.leave();
            let error = sent.wait().expect_err("it left");
            assert_eq!(error, CommError::PeerLeft { rank: 0, op: Op::Send(Channel::Forward), seq: 0 });
            left.send(()).expect("rank 1 listens");
        });
        let world = ShmWorld::join(one).expect("join");
        wait_for_left.recv().expect("rank 0 leaves");
        world.check().expect("that error was rank 0's own");
        let buf = world.alloc(DType::F32, 1).expect("alloc");
        world.world().recv(buf, 0, Channel::Forward).and_then(Work::wait).expect("it was sent");
    });
}

#[test]
fn a_peer_that_never_joins_is_named_at_the_deadline() {
    let fd = new_memfd();
    let errors: Vec<CommError> = std::thread::scope(|scope| {
        let ranks: Vec<_> = [0, 2]
            .into_iter()
            .map(|rank| options(rank, 4, &fd, SHORT))
            .map(|options| scope.spawn(move || ShmWorld::join(options).err().expect("no peer")))
            .collect();
        ranks.into_iter().map(|rank| rank.join().expect("rank")).collect()
    });
    let CommError::Timeout { op: Op::Join, missing, timeout: SHORT, last_seen, .. } = all_equal(&errors) else {
        panic!("{errors:?}");
    };
    assert_eq!(*missing, [1, 3]);
    assert_eq!(last_seen, "rank 1 has not joined, rank 3 has not joined");
}

#[test]
fn a_peer_that_does_not_come_is_named_at_the_deadline() {
    let (done, wait_for_done) = std::sync::mpsc::channel();
    let wait_for_done = std::sync::Mutex::new(wait_for_done);
    let errors = run_ranks(3, SHORT, |world| {
        let group = world.world();
        group.barrier().expect("barrier");
        if world.rank() == 1 {
            let waiting = wait_for_done.lock().expect("lock");
            (0..2).for_each(|_| waiting.recv().expect("the others end"));
            return group.barrier().expect_err("poisoned");
        }
        let error = group.barrier().expect_err("rank 1 is busy");
        done.send(()).expect("rank 1 listens");
        check_poisoned(world, &error);
        error
    });
    let CommError::Timeout { op: Op::Barrier, seq: 2, missing, last_seen, .. } = all_equal(&errors) else {
        panic!("{errors:?}");
    };
    assert_eq!(*missing, [1]);
    assert_eq!(last_seen, "rank 1 is outside any call, the last was barrier #1");
}

#[test]
fn who_waits_in_an_exchange_is_seen_there_and_names_who_does_not_come() {
    let [given_up, looked] = [(), ()].map(|()| std::sync::Barrier::new(3));
    let errors = run_ranks(3, SHORT, |world| {
        let buf = world.alloc(DType::F32, 300).expect("alloc");
        let group = world.group(7, &[0, 1, 2], UseOf::Collectives).expect("group");
        group.all_to_all(buf).and_then(Work::wait).expect("all come");
        if world.rank() == 1 {
            given_up.wait();
            for rank in [0, 2] {
                let flight = world.flight(rank);
                assert_eq!((flight.state, flight.op), (FlightState::Busy, Op::AllToAll));
                assert_eq!((flight.slot, flight.seq, flight.numel), (7, 2, 300));
            }
            looked.wait();
            return group.all_to_all(buf).expect_err("poisoned");
        }
        let error = group.all_to_all(buf).expect_err("rank 1 is busy");
        given_up.wait();
        looked.wait();
        error
    });
    let CommError::Timeout { op: Op::AllToAll, seq: 2, missing, last_seen, .. } = all_equal(&errors) else {
        panic!("{errors:?}");
    };
    assert_eq!(*missing, [1]);
    assert_eq!(last_seen, "rank 1 is outside any call, the last was all_to_all #1");
}

#[test]
fn a_message_is_done_when_it_is_taken_or_never_will_be() {
    run_ranks(2, PATIENT, |world| {
        let buf = world.alloc(DType::F32, 8).expect("alloc");
        let group = world.world();
        if world.rank() == 1 {
            group.barrier().expect("both are under way");
            group.recv(buf, 0, Channel::Forward).and_then(Work::wait).expect("recv");
            group.barrier().expect("one is taken");
            return group.barrier().expect_err("aborted");
        }
        let [first, second] = [(), ()].map(|()| group.send(buf, 1, Channel::Forward).expect("send"));
        assert!(!first.is_done() && !second.is_done());
        group.barrier().expect("both are under way");
        group.barrier().expect("one is taken");
        assert!(first.is_done() && !second.is_done());
        world.abort("enough");
        assert!(first.is_done() && second.is_done());
        first.wait().expect("what was taken counts");
        second.wait().expect_err("aborted")
    });
}

#[test]
fn an_abort_reaches_ranks_in_other_groups() {
    let errors = run_ranks(4, PATIENT, |world| {
        let buf = world.alloc(DType::F32, 1).expect("alloc");
        let everyone = world.world();
        everyone.barrier().expect("barrier");
        match world.rank() {
            0 => {
                world.abort("loss is NaN");
                everyone.barrier().expect_err("aborted")
            }
            1 => everyone.recv(buf, 0, Channel::Forward).expect_err("aborted"),
            // Rank 0 may abort before the group is made.
            _ => world.group(1, &[0, 2, 3], UseOf::Collectives).and_then(|group| group.barrier()).expect_err("aborted"),
        }
    });
    let expected = CommError::Aborted { rank: 0, reason: "loss is NaN".into() };
    assert_eq!(*all_equal(&errors), expected);
}

#[test]
fn a_rank_that_left_is_an_error_only_for_those_that_need_it() {
    let fd = new_memfd();
    let (left, wait_for_left) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let [zero, one, two] = [0, 1, 2].map(|rank| options(rank, 3, &fd, PATIENT));
        scope.spawn(move || {
            let world = ShmWorld::join(two).expect("join");
            world.world().barrier().expect("barrier");
            world.leave();
            left.send(()).expect("rank 0 listens");
        });
        scope.spawn(move || {
            let world = ShmWorld::join(one).expect("join");
            world.world().barrier().expect("barrier");
            let pair = world.group(1, &[0, 1], UseOf::Collectives).expect("group");
            pair.barrier().expect("rank 2 is not needed");
            let error = world.world().barrier().expect_err("rank 2 is needed");
            assert_eq!(error, CommError::PeerLeft { rank: 2, op: Op::Barrier, seq: 2 });
        });
        let world = ShmWorld::join(zero).expect("join");
        world.world().barrier().expect("barrier");
        wait_for_left.recv().expect("rank 2 leaves");
        assert_eq!(world.flight(2).state, FlightState::Left);
        let pair = world.group(1, &[0, 1], UseOf::Collectives).expect("group");
        pair.barrier().expect("rank 2 is not needed");
        let error = world.world().barrier().expect_err("rank 2 is needed");
        assert_eq!(error, CommError::PeerLeft { rank: 2, op: Op::Barrier, seq: 2 });
    });
}

#[test]
fn a_rank_that_leaves_wakes_those_that_wait_for_it() {
    for _ in 0..200 {
        let fd = new_memfd();
        std::thread::scope(|scope| {
            let [zero, one] = [0, 1].map(|rank| options(rank, 2, &fd, PATIENT));
            scope.spawn(move || ShmWorld::join(one).expect("join").leave());
            let world = ShmWorld::join(zero).expect("join");
            let buf = world.alloc(DType::F32, 1).expect("alloc");
            let error = world.world().recv(buf, 1, Channel::Forward).expect_err("nobody sends");
            assert_eq!(error, CommError::PeerLeft { rank: 1, op: Op::Recv(Channel::Forward), seq: 1 });
        });
    }
}

#[test]
fn a_rank_that_panics_aborts_the_world() {
    let fd = new_memfd();
    std::thread::scope(|scope| {
        let [zero, one] = [0, 1].map(|rank| options(rank, 2, &fd, PATIENT));
        let panics = scope.spawn(move || {
            let world = ShmWorld::join(one).expect("join");
            world.world().barrier().expect("barrier");
            panic!("expected by the test");
        });
        let world = ShmWorld::join(zero).expect("join");
        world.world().barrier().expect("barrier");
        let error = world.world().barrier().expect_err("rank 1 panicked");
        assert_eq!(error, CommError::Aborted { rank: 1, reason: "the rank panicked".into() });
        assert!(panics.join().is_err());
    });
}

#[test]
fn ranks_with_other_options_are_told_so() {
    let check = |change: fn(&mut ShmOptions), setting: &str| {
        let fd = new_memfd();
        let errors: Vec<CommError> = std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..2)
                .map(|rank| {
                    let mut options = options(rank, 2, &fd, PATIENT);
                    if rank == 1 {
                        change(&mut options);
                    }
                    scope.spawn(move || ShmWorld::join(options).err().expect("a mismatch"))
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().expect("rank")).collect()
        });
        let CommError::WorldMismatch { setting: found, .. } = all_equal(&errors) else { panic!("{errors:?}") };
        assert_eq!(found.to_string(), setting);
    };
    check(|options| options.world_size = 3, "world_size");
    check(|options| options.arena_bytes += 4096, "arena_bytes");
}

#[test]
fn one_rank_is_not_given_to_two() {
    let fd = new_memfd();
    let _world = ShmWorld::join(options(0, 1, &fd, PATIENT)).expect("join");
    let error = ShmWorld::join(options(0, 1, &fd, PATIENT)).err().expect("taken");
    assert_eq!(error, CommError::RankTaken { rank: 0, pid: std::process::id() });
    let error = ShmWorld::join(options(1, 1, &fd, PATIENT)).err().expect("no such rank");
    assert_eq!(error, CommError::InvalidWorld { rank: 1, world_size: 1, max_world_size: comm::MAX_RANKS });
}

#[test]
fn a_group_is_one_ascending_list_with_its_members_in_it() {
    let world = ShmWorld::solo(4096).expect("solo");
    for (slot, ranks) in
        [(0, vec![0]), (MAX_SLOTS, vec![0]), (1, vec![]), (1, vec![1]), (1, vec![0, 0]), (1, vec![0, 1])]
    {
        let error = world.group(slot, &ranks, UseOf::Collectives).err().expect("invalid");
        assert!(matches!(error, CommError::InvalidGroup { .. }), "{error}");
    }
    let errors = run_ranks(2, PATIENT, |world| {
        let ranks: &[usize] = if world.rank() == 0 { &[0] } else { &[0, 1] };
        world.group(1, ranks, UseOf::Collectives).and_then(|_| world.world().barrier()).expect_err("two lists")
    });
    assert!(matches!(all_equal(&errors), CommError::GroupMismatch { slot: 1, .. }), "{errors:?}");
}

#[test]
fn a_world_takes_memory_only_for_what_it_touches() {
    let fd = new_memfd();
    let fd_of_world = fd.try_clone().expect("dup");
    let taken_bytes = move || nix::sys::stat::fstat(&fd).expect("fstat").st_blocks as usize * 512;
    let world = ShmWorld::join(options(0, 1, &fd_of_world, PATIENT)).expect("join");
    for slot in [1, 100, 255] {
        world.group(slot, &[0], UseOf::Collectives).and_then(|group| group.barrier()).expect("alone");
    }
    // The control page is about 20 MiB long, most of it members of slots. Some 36 KiB are touched here; the bound holds
    // even where the kernel gives huge pages, 2 MiB at each touch.
    assert!(taken_bytes() < 16 << 20, "{} bytes", taken_bytes());
}

#[test]
fn an_exhausted_arena_says_what_is_missing() {
    let world = ShmWorld::solo(1000).expect("solo");
    assert_eq!(world.alloc(DType::BF16, 3).expect("fits").offset_bytes(), 0);
    assert_eq!(world.alloc(DType::F64, 10).expect("fits").offset_bytes(), 64);
    let error = world.alloc(DType::F32, 203).expect_err("too big");
    let expected = CommError::ArenaExhausted { needed_bytes: 812, available_bytes: 808, arena_bytes: 1000 };
    assert_eq!(error, expected);
    world.alloc(DType::F32, 202).expect("the rest fits");
}
