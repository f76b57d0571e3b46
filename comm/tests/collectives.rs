//! Every operation against a plain reference, bit for bit (COM-1).

mod common;

use comm::{Buffer, Channel, Collective, DType, MAX_SCALARS, ReduceOp, ShmWorld, SoloGroup, UseOf, Work, World};
use common::{PATIENT, input, read, reference, run_ranks, write};

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F64];
const OPS: [ReduceOp; 2] = [ReduceOp::Sum, ReduceOp::Max];
/// Inline and not, shorter than the number of ranks, no multiple of a cache line or chunk, several chunks.
const NUMELS: [usize; 7] = [0, 1, 7, 128, 1000, 4096, 65537];
const WORLD_SIZES: [usize; 4] = [1, 2, 3, 4];

/// Fills `buf` with the inputs of this rank.
fn fill(world: &ShmWorld, buf: Buffer) {
    write(world, buf, &input(buf.dtype(), world.rank(), buf.numel()));
}

fn inputs(dtype: DType, ranks: &[usize], numel: usize) -> Vec<Vec<u8>> {
    ranks.iter().map(|rank| input(dtype, *rank, numel)).collect()
}

/// Shard `index` of `size` of some bytes.
fn shard(bytes: &[u8], index: usize, size: usize) -> &[u8] {
    let len = bytes.len() / size;
    &bytes[index * len..(index + 1) * len]
}

/// Checks every collective of `group`, whose members are `ranks`, on buffers of `[numel]`, cut to shards where shards are
/// asked for.
fn check_group(world: &ShmWorld, group: &dyn Collective, ranks: &[usize], buf: Buffer) {
    let (rank, size, dtype) = (group.rank(), group.size(), buf.dtype());
    assert_eq!((ranks[rank], ranks.len()), (world.rank(), size));
    let padded = buf.slice(0, buf.numel() / size * size);
    let done = |work: comm::Result<Work>| work.and_then(Work::wait).expect("no fault");
    for op in OPS {
        fill(world, buf);
        done(group.all_reduce(buf, op));
        let expected = reference(dtype, &inputs(dtype, ranks, buf.numel()), op);
        assert!(read(world, buf) == expected, "all_reduce {op:?} {buf:?} on {ranks:?}");

        fill(world, buf);
        done(group.reduce_scatter(padded, op));
        let sum = reference(dtype, &inputs(dtype, ranks, padded.numel()), op);
        let mut expected = input(dtype, world.rank(), padded.numel());
        let len = expected.len() / size;
        expected[rank * len..(rank + 1) * len].copy_from_slice(shard(&sum, rank, size));
        assert!(read(world, padded) == expected, "reduce_scatter {op:?} {buf:?} on {ranks:?}");
    }

    fill(world, buf);
    done(group.all_gather(padded));
    let all = inputs(dtype, ranks, padded.numel());
    let expected: Vec<u8> = (0..size).flat_map(|r| shard(&all[r], r, size).to_vec()).collect();
    assert!(read(world, padded) == expected, "all_gather {buf:?} on {ranks:?}");

    fill(world, buf);
    done(group.all_to_all(padded));
    let mut expected: Vec<u8> = all.iter().flat_map(|theirs| shard(theirs, rank, size).to_vec()).collect();
    let rest = expected.len();
    expected.extend_from_slice(&input(dtype, world.rank(), buf.numel())[rest..]);
    assert!(read(world, buf) == expected, "all_to_all {buf:?} on {ranks:?}");
    done(group.all_to_all(padded));
    assert!(read(world, buf) == input(dtype, world.rank(), buf.numel()), "all_to_all twice {buf:?} on {ranks:?}");

    for (root, of_root) in ranks.iter().enumerate() {
        fill(world, buf);
        done(group.broadcast(buf, root));
        let expected = input(dtype, *of_root, buf.numel());
        assert!(read(world, buf) == expected, "broadcast from {root} of {buf:?} on {ranks:?}");
    }
}

#[test]
fn every_collective_equals_the_reference_bit_for_bit() {
    for world_size in WORLD_SIZES {
        run_ranks(world_size, PATIENT, |world| {
            let (group, ranks) = (world.world(), Vec::from_iter(0..world_size));
            for dtype in DTYPES {
                for numel in NUMELS {
                    check_group(world, &*group, &ranks, world.alloc(dtype, numel).expect("alloc"));
                }
            }
        });
    }
}

#[test]
fn subgroups_work_side_by_side_with_the_world() {
    run_ranks(4, PATIENT, |world| {
        let rank = world.rank();
        let of_row = [rank / 2 * 2, rank / 2 * 2 + 1];
        let of_column = [rank % 2, rank % 2 + 2];
        let row = world.group(1 + rank / 2, &of_row, UseOf::Collectives).expect("row");
        let column = world.group(254 + rank % 2, &of_column, UseOf::Collectives).expect("column");
        let buf = world.alloc(DType::BF16, 5000).expect("alloc");
        for _ in 0..20 {
            check_group(world, &*row, &of_row, buf);
            check_group(world, &*column, &of_column, buf);
            check_group(world, &*world.world(), &[0, 1, 2, 3], buf);
        }
    });
}

#[test]
fn scalars_are_summed_in_rank_order() {
    for world_size in WORLD_SIZES {
        run_ranks(world_size, PATIENT, |world| {
            let group = world.world();
            let value = |rank: usize, i: usize| (0.1 + rank as f64) * 1e7_f64.powi(i as i32 % 3 - 1);
            for numel in [0, 1, MAX_SCALARS] {
                let mine: Vec<f64> = (0..numel).map(|i| value(world.rank(), i)).collect();
                let mut sum = mine.clone();
                group.all_reduce_scalars(&mut sum, ReduceOp::Sum).expect("sum");
                let mut max = mine;
                group.all_reduce_scalars(&mut max, ReduceOp::Max).expect("max");
                for i in 0..numel {
                    let expected = (1..world_size).fold(value(0, i), |sum, rank| sum + value(rank, i));
                    assert_eq!(sum[i].to_bits(), expected.to_bits());
                    assert_eq!(max[i], value(world_size - 1, i));
                }
            }
        });
    }
}

#[test]
fn ten_thousand_barriers_keep_ranks_in_step() {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    const NUM_BARRIERS: usize = 10_000;
    for world_size in [2, 3] {
        let steps: Vec<AtomicUsize> = (0..world_size).map(|_| AtomicUsize::new(0)).collect();
        run_ranks(world_size, PATIENT, |world| {
            let group = world.world();
            for step in 1..=NUM_BARRIERS {
                steps[world.rank()].store(step, SeqCst);
                group.barrier().expect("barrier");
                for other in &steps {
                    let other = other.load(SeqCst);
                    assert!(other == step || other == step + 1, "{other} at {step}");
                }
            }
        });
    }
}

#[test]
fn an_exchange_takes_slices_that_begin_anywhere() {
    for size in [2, 3, 5] {
        run_ranks(size, PATIENT, |world| {
            let ranks = Vec::from_iter(0..size);
            for dtype in DTYPES {
                let whole = world.alloc(dtype, 3000 * size + 7).expect("alloc");
                // Slices of no, one and several cache lines, none of which begins on one.
                for shard in [1, 2, 15, 33, 1001, 3000] {
                    check_group(world, &*world.world(), &ranks, whole.slice(3, shard * size));
                }
            }
        });
    }
}

#[test]
#[should_panic(expected = "a buffer of 7 elements does not split into 2 shards")]
fn an_exchange_needs_whole_slices() {
    let world = ShmWorld::solo(4096).expect("solo");
    let _ = world.alloc(DType::F32, 7).expect("alloc").shard(0, 2);
}

#[test]
fn a_world_of_one_needs_no_launcher() {
    let world = ShmWorld::solo(1 << 20).expect("solo");
    let group = world.world();
    check_group(&world, &*group, &[0], world.alloc(DType::BF16, 1000).expect("alloc"));
    group.barrier().expect("barrier");
    world.leave();
}

#[test]
#[should_panic(expected = "send to 1 in a group of one")]
fn the_solo_group_has_nobody_to_send_to() {
    let world = ShmWorld::solo(4096).expect("solo");
    let buf = world.alloc(DType::F32, 10).expect("alloc");
    let _ = SoloGroup.send(buf, 1, Channel::Forward);
}

#[test]
#[should_panic(expected = "recv from 0 in a group of one")]
fn the_solo_group_has_nobody_to_receive_from() {
    let world = ShmWorld::solo(4096).expect("solo");
    let buf = world.alloc(DType::F32, 10).expect("alloc");
    let _ = SoloGroup.recv(buf, 0, Channel::Backward);
}

#[test]
fn the_solo_group_is_the_identity() {
    let world = ShmWorld::solo(1 << 20).expect("solo");
    let buf = world.alloc(DType::F32, 10).expect("alloc");
    fill(&world, buf);
    let group: &dyn Collective = &SoloGroup;
    for work in [
        group.all_reduce(buf, ReduceOp::Sum),
        group.reduce_scatter(buf, ReduceOp::Sum),
        group.all_gather(buf),
        group.all_to_all(buf),
        group.broadcast(buf, 0),
    ] {
        work.and_then(Work::wait).expect("solo");
    }
    let mut values = [1.5, -2.5];
    group.all_reduce_scalars(&mut values, ReduceOp::Sum).expect("solo");
    assert_eq!(values, [1.5, -2.5]);
    assert_eq!(read(&world, buf), input(DType::F32, 0, 10));
}
