//! Messages: several under way, in order, on two channels.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::*};

use comm::{Buffer, CHANNEL_CAPACITY, Channel, DType, FlightState, Op, ReduceOp, ShmWorld, Work, World};
use common::{PATIENT, input, new_memfd, options, read, run_ranks, write};

const CHANNELS: [Channel; 2] = [Channel::Forward, Channel::Backward];
const NUMEL: usize = 500;

fn alloc(world: &ShmWorld, num_bufs: usize) -> Vec<Buffer> {
    (0..num_bufs).map(|_| world.alloc(DType::F32, NUMEL).expect("alloc")).collect()
}

/// The contents of message `i` from `rank`.
fn message(rank: usize, i: usize) -> Vec<u8> {
    input(DType::F32, rank + 10 * i, NUMEL)
}

fn send(world: &ShmWorld, buf: Buffer, to: usize, channel: Channel, i: usize) -> Work {
    write(world, buf, &message(world.rank(), i));
    world.world().send(buf, to, channel).expect("send")
}

fn check_recv(world: &ShmWorld, buf: Buffer, from: usize, channel: Channel, i: usize) {
    world.world().recv(buf, from, channel).and_then(Work::wait).expect("recv");
    assert!(read(world, buf) == message(from, i), "message {i} from {from} on {channel}");
}

fn wait_all(works: Vec<Work>) {
    works.into_iter().try_for_each(Work::wait).expect("taken");
}

/// Blocks until the flight cell of rank 0 says that it waits for message `seq` on the forward channel.
fn await_sender_at(world: &ShmWorld, seq: usize) {
    let seq = seq as u64;
    loop {
        world.check().expect("the sender is patient");
        let flight = world.flight(0);
        if (flight.state, flight.op, flight.seq) == (FlightState::Busy, Op::Send(Channel::Forward), seq) {
            return;
        }
        std::thread::yield_now();
    }
}

#[test]
fn messages_arrive_in_order_between_different_offsets() {
    run_ranks(3, PATIENT, |world| {
        let group = world.world();
        let (rank, size) = (group.rank(), group.size());
        let out = world.alloc(DType::F32, 3001).expect("alloc");
        let into = world.alloc(DType::F32, 3001).expect("alloc");
        for round in 0..50 {
            let numel = 1 + round * 60;
            let (out, into) = (out.slice(0, numel), into.slice(1, numel));
            write(world, out, &input(DType::F32, rank + round, numel));
            let sent = group.send(out, (rank + 1) % size, Channel::Forward).expect("send");
            let from = (rank + size - 1) % size;
            group.recv(into, from, Channel::Forward).and_then(Work::wait).expect("recv");
            assert!(read(world, into) == input(DType::F32, from + round, numel), "round {round}");
            sent.wait().expect("taken");
        }
    });
}

#[test]
fn all_may_send_to_all_before_anyone_receives() {
    for world_size in [2, 3] {
        run_ranks(world_size, PATIENT, |world| {
            let rank = world.rank();
            let peers: Vec<usize> = (0..world_size).filter(|peer| *peer != rank).collect();
            let out = alloc(world, peers.len() * CHANNELS.len() * CHANNEL_CAPACITY);
            let into = alloc(world, 1)[0];
            for round in 0..20 {
                let mut out = out.iter();
                let mut sent = Vec::new();
                for to in &peers {
                    for channel in CHANNELS {
                        for i in 0..CHANNEL_CAPACITY {
                            let buf = *out.next().expect("one for each");
                            sent.push(send(world, buf, *to, channel, round + i + channel as usize * 100));
                        }
                    }
                }
                world.world().barrier().expect("everything is sent, nothing is received");
                for from in &peers {
                    for channel in CHANNELS {
                        for i in 0..CHANNEL_CAPACITY {
                            check_recv(world, into, *from, channel, round + i + channel as usize * 100);
                        }
                    }
                }
                wait_all(sent);
            }
        });
    }
}

#[test]
fn a_full_channel_holds_the_sender_until_one_is_taken() {
    const NUM_MESSAGES: usize = 5 * CHANNEL_CAPACITY;
    run_ranks(2, PATIENT, |world| {
        let bufs = alloc(world, NUM_MESSAGES);
        if world.rank() == 0 {
            return wait_all((0..NUM_MESSAGES).map(|i| send(world, bufs[i], 1, Channel::Forward, i)).collect());
        }
        for (i, buf) in bufs.iter().enumerate() {
            // As slow as can be: the sender is as far ahead as it may, in `send` or else in the wait for this message.
            let number = i + 1;
            let ahead = number + CHANNEL_CAPACITY;
            await_sender_at(world, if ahead <= NUM_MESSAGES { ahead } else { number });
            check_recv(world, *buf, 0, Channel::Forward, i);
        }
    });
}

#[test]
fn a_buffer_may_change_once_its_message_is_waited_for() {
    run_ranks(2, PATIENT, |world| {
        let bufs = alloc(world, CHANNEL_CAPACITY);
        let mut sent: Vec<Option<Work>> = bufs.iter().map(|_| None).collect();
        for i in 0..50 * CHANNEL_CAPACITY {
            let nth = i % CHANNEL_CAPACITY;
            if world.rank() == 1 {
                check_recv(world, bufs[nth], 0, Channel::Backward, i);
            } else {
                sent[nth].take().map_or(Ok(()), Work::wait).expect("taken");
                sent[nth] = Some(send(world, bufs[nth], 1, Channel::Backward, i));
            }
        }
        wait_all(sent.into_iter().flatten().collect());
    });
}

#[test]
fn channels_do_not_mix() {
    run_ranks(2, PATIENT, |world| {
        let bufs = alloc(world, 2);
        let group = world.world();
        for round in 0..20 {
            if world.rank() == 0 {
                let forward = send(world, bufs[0], 1, Channel::Forward, round);
                // Another size: nothing of the one channel is compared with the other.
                let backward = group.send(bufs[1].slice(0, 3), 1, Channel::Backward).expect("send");
                wait_all(vec![backward, forward]);
            } else {
                group.recv(bufs[1].slice(0, 3), 0, Channel::Backward).and_then(Work::wait).expect("recv");
                check_recv(world, bufs[0], 0, Channel::Forward, round);
            }
        }
    });
}

#[test]
fn works_may_be_waited_for_in_any_order_and_long_after() {
    const NUM_MESSAGES: usize = 3 * CHANNEL_CAPACITY;
    run_ranks(2, PATIENT, |world| {
        let bufs = alloc(world, NUM_MESSAGES);
        if world.rank() == 0 {
            let mut sent: Vec<Work> = (0..NUM_MESSAGES).map(|i| send(world, bufs[i], 1, Channel::Forward, i)).collect();
            sent.reverse();
            wait_all(sent);
        } else {
            (0..NUM_MESSAGES).for_each(|i| check_recv(world, bufs[i], 0, Channel::Forward, i));
        }
    });
}

#[test]
fn messages_whose_work_is_dropped_arrive_all_the_same() {
    const NUM_MESSAGES: usize = 3 * CHANNEL_CAPACITY;
    run_ranks(2, PATIENT, |world| {
        let bufs = alloc(world, NUM_MESSAGES);
        for (i, buf) in bufs.iter().enumerate() {
            match world.rank() {
                0 => drop(send(world, *buf, 1, Channel::Forward, i)),
                _ => check_recv(world, *buf, 0, Channel::Forward, i),
            }
        }
    });
}

#[test]
fn a_work_outlives_its_world() {
    let fd = new_memfd();
    std::thread::scope(|scope| {
        let [zero, one] = [0, 1].map(|rank| options(rank, 2, &fd, PATIENT));
        scope.spawn(move || {
            let world = ShmWorld::join(zero).expect("join");
            let buf = alloc(&world, 1)[0];
            let sent = send(&world, buf, 1, Channel::Forward, 7);
            world.world().barrier().expect("barrier");
            drop(world);
            sent.wait().expect("rank 1 takes it");
        });
        let world = ShmWorld::join(one).expect("join");
        let buf = alloc(&world, 1)[0];
        world.world().barrier().expect("barrier");
        check_recv(&world, buf, 0, Channel::Forward, 7);
    });
}

/// One operation of two ranks, of which rank 0 waits for rank 1.
type Operation = fn(&ShmWorld, Buffer);

const OPERATIONS: [Operation; 4] = [
    |world, buf| world.world().all_reduce(buf, ReduceOp::Sum).and_then(Work::wait).expect("no fault"),
    |world, buf| world.world().all_gather(buf).and_then(Work::wait).expect("no fault"),
    |world, _| world.world().all_reduce_scalars(&mut [1.0], ReduceOp::Sum).expect("no fault"),
    |world, buf| {
        let group = world.world();
        let work = match world.rank() {
            0 => group.recv(buf, 1, Channel::Forward),
            _ => group.send(buf, 0, Channel::Forward),
        };
        work.and_then(Work::wait).expect("no fault");
    },
];

#[test]
fn a_rank_says_that_it_has_come_before_it_waits() {
    let arrivals = Arc::new(AtomicUsize::new(0));
    run_ranks(2, PATIENT, |world| {
        let buf = world.alloc(DType::F32, NUMEL).expect("alloc");
        if world.rank() == 0 {
            let arrivals = arrivals.clone();
            world.on_arrival(Box::new(move || {
                arrivals.fetch_add(1, AcqRel);
            }));
        }
        for (number, operation) in OPERATIONS.into_iter().enumerate() {
            // Rank 0 waits in the operation meanwhile, or it would not end.
            while world.rank() == 1 && arrivals.load(Acquire) == number {
                world.check().expect("rank 0 is patient");
                std::thread::yield_now();
            }
            operation(world, buf);
        }
    });
    assert_eq!(arrivals.load(Acquire), OPERATIONS.len(), "once for each");
}
