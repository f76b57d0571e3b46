//! Ranks as threads: each joins the same memfd on its own, which is all that the protocol sees of a process.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(unsafe_code, reason = "reads and writes the arena as rank code does through tensors")]

use std::os::fd::OwnedFd;
use std::time::Duration;

use comm::{Buffer, DType, ShmOptions, ShmWorld, World};
use half::bf16;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Longer than any scheduling delay of a loaded machine.
pub const PATIENT: Duration = Duration::from_secs(60);

pub fn new_memfd() -> OwnedFd {
    memfd_create("comm-test", MFdFlags::MFD_CLOEXEC).expect("memfd_create")
}

pub fn options(rank: usize, world_size: usize, fd: &OwnedFd, timeout: Duration) -> ShmOptions {
    let fd = fd.try_clone().expect("dup");
    ShmOptions { rank, world_size, fd, arena_bytes: 4 << 20, timeout }
}

/// Runs `body` on every rank of a world and returns the answers in rank order.
pub fn run_ranks<T: Send>(world_size: usize, timeout: Duration, body: impl Fn(&ShmWorld) -> T + Sync) -> Vec<T> {
    let fd = new_memfd();
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| {
                let options = options(rank, world_size, &fd, timeout);
                let body = &body;
                scope.spawn(move || body(&ShmWorld::join(options).expect("join")))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().expect("rank")).collect()
    })
}

/// This rank's bytes of `buf`.
pub fn read(world: &ShmWorld, buf: Buffer) -> Vec<u8> {
    // SAFETY: the buffer is in the arena of `world`, which is alive, and no operation is under way.
    unsafe { std::slice::from_raw_parts(world.as_ptr(buf).as_ptr(), buf.size_bytes()) }.to_vec()
}

/// Overwrites this rank's `buf`.
pub fn write(world: &ShmWorld, buf: Buffer, bytes: &[u8]) {
    assert_eq!(bytes.len(), buf.size_bytes());
    // SAFETY: as in `read`, and `bytes` is memory of ours.
    unsafe { std::slice::from_raw_parts_mut(world.as_ptr(buf).as_ptr(), bytes.len()) }.copy_from_slice(bytes);
}

/// Element `i` of rank `rank`: values whose sum depends on the order, in a range where bf16 rounds.
fn value(rank: usize, i: usize) -> f64 {
    let mixed = (i as u64 * 4 + rank as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let unit = (mixed >> 11) as f64 / (1_u64 << 53) as f64 - 0.5;
    unit * [1.0, 1e3, 1e-3, 1e6][(mixed & 3) as usize]
}

/// The input of `rank`.
pub fn input(dtype: DType, rank: usize, numel: usize) -> Vec<u8> {
    (0..numel).flat_map(|i| encode(dtype, value(rank, i))).collect()
}

fn encode(dtype: DType, value: f64) -> Vec<u8> {
    match dtype {
        DType::F32 => (value as f32).to_le_bytes().to_vec(),
        DType::BF16 => bf16::from_f32(value as f32).to_le_bytes().to_vec(),
        DType::F64 => value.to_le_bytes().to_vec(),
    }
}

/// The plain reference: element by element, in rank order, in the accumulator of the dtype, rounded once.
pub fn reference(dtype: DType, inputs: &[Vec<u8>], op: comm::ReduceOp) -> Vec<u8> {
    macro_rules! fold {
        ($float:ty, $acc:ty, $widen:expr, $narrow:expr) => {{
            let at = |bytes: &[u8], i: usize| {
                let size = size_of::<$float>();
                let bytes = bytes[i * size..(i + 1) * size].try_into().expect("one element");
                let widen: fn($float) -> $acc = $widen;
                widen(<$float>::from_le_bytes(bytes))
            };
            let combine = |a: $acc, b: $acc| match op {
                comm::ReduceOp::Sum => a + b,
                comm::ReduceOp::Max => a.max(b),
            };
            let numel = inputs[0].len() / size_of::<$float>();
            let narrow: fn($acc) -> $float = $narrow;
            (0..numel)
                .flat_map(|i| {
                    let values = inputs.iter().map(|bytes| at(bytes, i));
                    narrow(values.reduce(combine).expect("inputs")).to_le_bytes()
                })
                .collect()
        }};
    }
    match dtype {
        DType::F32 => fold!(f32, f32, |x| x, |x| x),
        DType::F64 => fold!(f64, f64, |x| x, |x| x),
        DType::BF16 => fold!(bf16, f32, bf16::to_f32, bf16::from_f32),
    }
}
