//! kernels-on-gpu: runs the kernels that have to be fast on a GPU and in the emulation, from the same bytes. Compares the bits of
//! all that either has written, and measures the kernels at the sizes of DeepSeek-LLM-7B beside a copy. For machines with a GPU: see
//! scripts/gpu.sh.
//!
//! Exit codes: 0 all bits are equal; 1 some differ; 2 there is no GPU that can be used.

#![allow(unsafe_code, reason = "kernels take pointers")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it prints a table")]

use std::error::Error;
use std::ffi::c_void;
use std::path::Path;
use std::process::ExitCode;

use emulation::{Dim, Kernel, Words, words};
use rank::device::cuda::cache::Cache;
use rank::device::cuda::driver::{DeviceMemory, Driver, GpuError};
use rank::device::cuda::gpu::Gpu;
use rank::kernels::cuda::{HEADER, SOURCES};

/// Launches of a kernel that are measured together.
const REPEATS: u32 = 20;
/// Bytes of the copy that kernels are measured beside: larger than any cache.
const COPY_BYTES: usize = 1 << 30;

/// One launch.
struct Case {
    kernel: &'static str,
    grid: u32,
    block: u32,
    buffers: Vec<Vec<u8>>,
    args: Vec<Arg>,
    /// Bytes that it has to move at least.
    moved: usize,
}

/// An argument.
#[derive(Clone, Copy)]
enum Arg {
    /// The buffer of this number.
    Buffer(usize),
    /// Heads in a buffer, by how far a sample, a token and a head are from the next.
    Heads { buffer: usize, strides: [u64; 3] },
    /// No memory.
    Nothing,
    /// A number or a struct, as its words.
    Value(Words),
}

fn value<T: Copy>(value: T) -> Arg {
    Arg::Value(words(value))
}

/// Bytes that are numbers of a type between -2 and 2, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 22) as f32 - 2.0
    }

    fn bf16(&mut self, numel: usize) -> Vec<u8> {
        (0..numel).flat_map(|_| (self.next().to_bits() >> 16).to_le_bytes().into_iter().take(2)).collect()
    }

    fn f32(&mut self, numel: usize) -> Vec<u8> {
        (0..numel).flat_map(|_| self.next().to_le_bytes()).collect()
    }
}

/// The kernels that have to be fast, in bf16. `tokens`: rows of all of them.
fn cases(tokens: usize, model: Model) -> Vec<Case> {
    let Model { hidden, ffn, heads, vocab } = model;
    let mut of = Numbers(7);
    let (rows, stream) = (tokens as u32, tokens * hidden);
    let threads = |width: usize, most: u32| ((width / 8) as u32).next_multiple_of(32).min(most);
    // Eight for each multiprocessor of an H100.
    let many = 132 * 8;
    let constants = [0.9999f32, 0.1, 0.95, 0.05, 0.31, 1e-8, 1e-2];
    let targets: Vec<u8> = (0..tokens).flat_map(|token| ((token * 7919 % vocab) as i64).to_le_bytes()).collect();
    let (state, weight) = (stream, hidden * ffn);
    use Arg::{Buffer, Nothing};
    vec![
        Case {
            kernel: "rms_norm_forward_bf16",
            grid: rows,
            block: threads(hidden, 512),
            buffers: vec![of.bf16(stream), of.bf16(hidden), vec![0xff; 2 * stream], vec![0xff; 4 * tokens]],
            args: vec![Buffer(0), Buffer(1), Buffer(2), Buffer(3), value(hidden as i32), value(1e-6f32)],
            moved: 4 * stream,
        },
        Case {
            kernel: "rms_norm_backward_bf16",
            grid: 264.min(rows),
            block: threads(hidden, 512),
            buffers: vec![
                of.bf16(stream),
                of.bf16(hidden),
                of.f32(tokens),
                of.bf16(stream),
                of.bf16(stream),
                vec![0xff; 2 * stream],
                vec![0xff; 4 * 264.min(tokens) * hidden],
            ],
            args: (0..7).map(Buffer).chain([value(tokens as i32), value(hidden as i32)]).collect(),
            moved: 8 * stream,
        },
        Case {
            kernel: "add_rms_norm_forward_bf16",
            grid: rows,
            block: threads(hidden, 512),
            buffers: vec![
                of.bf16(stream),
                of.bf16(stream),
                of.bf16(hidden),
                vec![0xff; 2 * stream],
                vec![0xff; 4 * tokens],
            ],
            args: (0..5).map(Buffer).chain([value(hidden as i32), value(1e-6f32)]).collect(),
            moved: 8 * stream,
        },
        Case {
            kernel: "rotate_bf16",
            grid: rows,
            block: 256,
            buffers: vec![
                of.bf16(3 * stream),
                of.bf16(tokens * hidden / heads / 2),
                of.bf16(tokens * hidden / heads / 2),
            ],
            args: vec![
                Buffer(0),
                Buffer(1),
                Buffer(2),
                value(2 * heads as i32),
                value(3 * heads as i32),
                value((hidden / heads / 2) as i32),
                value(1f32),
            ],
            moved: 8 * stream,
        },
        Case {
            kernel: "join_rotated_bf16",
            grid: rows,
            block: 256,
            // q and k as cuDNN leaves them, v head by head.
            buffers: vec![
                of.bf16(stream),
                of.bf16(stream),
                of.bf16(stream),
                vec![0xff; 6 * stream],
                of.bf16(tokens * hidden / heads / 2),
                of.bf16(tokens * hidden / heads / 2),
            ],
            args: [(0, [tokens * hidden, hidden, hidden / heads]), (1, [tokens * hidden, hidden, hidden / heads])]
                .into_iter()
                .chain([(2, [tokens * hidden, hidden / heads, tokens * hidden / heads])])
                .map(|(buffer, strides)| Arg::Heads { buffer, strides: strides.map(|stride| stride as u64) })
                .chain((3..6).map(Buffer))
                .chain([value([tokens as i32, heads as i32, heads as i32, (hidden / heads / 2) as i32])])
                .collect(),
            moved: 12 * stream,
        },
        Case {
            kernel: "swiglu_forward_bf16",
            grid: many,
            block: 256,
            buffers: vec![of.bf16(2 * tokens * ffn), vec![0xff; 2 * tokens * ffn]],
            args: vec![Buffer(0), Buffer(1), value(tokens as i32), value(ffn as i32)],
            moved: 6 * tokens * ffn,
        },
        Case {
            kernel: "swiglu_backward_bf16",
            grid: many,
            block: 256,
            buffers: vec![of.bf16(2 * tokens * ffn), of.bf16(tokens * ffn)],
            args: vec![Buffer(0), Buffer(1), Nothing, value(tokens as i32), value(ffn as i32)],
            moved: 10 * tokens * ffn,
        },
        Case {
            kernel: "swiglu_backward_bf16",
            grid: many,
            block: 256,
            buffers: vec![of.bf16(2 * tokens * ffn), of.bf16(tokens * ffn), vec![0xff; 2 * tokens * ffn]],
            args: vec![Buffer(0), Buffer(1), Buffer(2), value(tokens as i32), value(ffn as i32)],
            moved: 12 * tokens * ffn,
        },
        Case {
            kernel: "cross_entropy_bf16",
            grid: rows / 4,
            block: 1024,
            buffers: vec![of.bf16(tokens / 4 * vocab), targets, vec![0xff; 4 * tokens]],
            args: vec![Buffer(0), Buffer(1), Buffer(2), value(vocab as i32), value(vocab as u64), value(1i32)],
            moved: 4 * (tokens / 4) * vocab,
        },
        Case {
            kernel: "dequantize_nf4_bf16",
            grid: many,
            block: 256,
            // Codes, those of blocks' scales, and the scales.
            buffers: vec![
                of.f32(weight.div_ceil(8)),
                of.f32(weight.div_ceil(64).div_ceil(4)),
                of.f32(257 + weight.div_ceil(64 * 256)),
                vec![0xff; 2 * weight],
            ],
            args: (0..4).map(Buffer).chain([value([0u32, 1 << 31, 0]), value(weight as u64)]).collect(),
            moved: 2 * weight + weight / 2,
        },
        Case {
            kernel: "dequantize_int8_bf16",
            grid: hidden as u32,
            block: threads(ffn, 256).max(32),
            buffers: vec![of.f32(weight.div_ceil(4)), of.f32(hidden), vec![0xff; 2 * weight]],
            args: (0..3).map(Buffer).chain([value(ffn as i32)]).collect(),
            moved: 3 * weight,
        },
        Case {
            kernel: "square_parts",
            grid: 1024,
            block: 512,
            buffers: vec![of.f32(state), vec![0xff; 8 * 1024]],
            args: vec![Buffer(0), Buffer(1), value(state as u64)],
            moved: 4 * state,
        },
        Case {
            kernel: "adamw",
            grid: many,
            block: 256,
            buffers: vec![
                of.f32(state),
                of.f32(state),
                of.f32(state),
                // A second moment has no sign.
                of.f32(state)
                    .into_iter()
                    .enumerate()
                    .map(|(at, byte)| if at % 4 == 3 { byte & 0x7f } else { byte })
                    .collect(),
                vec![0xff; 2 * state],
                0.7f32.to_le_bytes().to_vec(),
            ],
            args: (0..6).map(Buffer).chain([value(constants), value(state as u64), value(1i32)]).collect(),
            moved: 34 * state,
        },
        Case {
            kernel: "adamw",
            grid: many,
            block: 256,
            buffers: vec![of.f32(state), of.f32(state), of.f32(state), vec![0; 4 * state], 1f32.to_le_bytes().to_vec()],
            args: (0..4)
                .map(Buffer)
                .chain([Nothing, Buffer(4), value(constants), value(state as u64), value(0i32)])
                .collect(),
            moved: 32 * state,
        },
    ]
}

/// Sizes of a model.
#[derive(Clone, Copy)]
struct Model {
    hidden: usize,
    ffn: usize,
    heads: usize,
    vocab: usize,
}

/// DeepSeek-LLM-7B.
const REAL: Model = Model { hidden: 4096, ffn: 11008, heads: 32, vocab: 102_400 };
/// Small, and with rows that are no multiple of eight.
const ODD: Model = Model { hidden: 1020, ffn: 1003, heads: 10, vocab: 4099 };
/// With rows so long that a thread has several groups of a row.
const WIDE: Model = Model { hidden: 8192, ffn: 1024, heads: 64, vocab: 4096 };

/// Calls `launch` with pointers to the arguments, where buffers are at `addresses`.
fn with_args(args: &[Arg], addresses: &[u64], launch: impl FnOnce(&mut [*mut c_void])) {
    let mut held: Vec<Words> = args
        .iter()
        .map(|arg| match arg {
            Arg::Buffer(number) => words(addresses[*number]),
            Arg::Heads { buffer, strides: [sample, token, head] } => [addresses[*buffer], *sample, *token, *head],
            Arg::Nothing => [0; 4],
            Arg::Value(words) => *words,
        })
        .collect();
    let mut pointers: Vec<*mut c_void> = held.iter_mut().map(|words| words.as_mut_ptr().cast()).collect();
    launch(&mut pointers);
}

impl Case {
    /// What all buffers hold after a launch in the emulation.
    fn emulate(&self) -> Vec<Vec<u8>> {
        // As aligned as the GPU's.
        let mut buffers: Vec<Vec<u128>> = self
            .buffers
            .iter()
            .map(|bytes| {
                let word = |part: &[u8]| {
                    let mut word = [0u8; 16];
                    word[..part.len()].copy_from_slice(part);
                    u128::from_le_bytes(word)
                };
                bytes.chunks(16).map(word).collect()
            })
            .collect();
        let addresses: Vec<u64> = buffers.iter_mut().map(|buffer| buffer.as_mut_ptr() as u64).collect();
        let kernel = Kernel::named(self.kernel).expect("a kernel");
        // SAFETY: the arguments are the kernel's, and buffers as large as it reads and writes.
        with_args(&self.args, &addresses, |args| unsafe {
            kernel.launch(Dim::from(self.grid), Dim::from(self.block), args, 0);
        });
        let bytes = |(words, bytes): (Vec<u128>, &Vec<u8>)| {
            let mut all: Vec<u8> = words.into_iter().flat_map(u128::to_le_bytes).collect();
            all.truncate(bytes.len());
            all
        };
        buffers.into_iter().zip(&self.buffers).map(bytes).collect()
    }

    fn start(&self, gpu: &Driver, memories: &[DeviceMemory]) {
        let addresses: Vec<u64> = memories.iter().map(DeviceMemory::address).collect();
        // SAFETY: as above.
        with_args(&self.args, &addresses, |args| unsafe { gpu.launch(self.kernel, self.grid, self.block, args) });
    }

    fn upload<'a>(&self, gpu: &'a Driver) -> Result<Vec<DeviceMemory<'a>>, GpuError> {
        self.buffers.iter().map(|bytes| gpu.upload(bytes)).collect()
    }

    /// Bytes that differ between the GPU and the emulation, by buffer.
    fn differences(&self, gpu: &Driver) -> Result<Vec<usize>, GpuError> {
        let memories = self.upload(gpu)?;
        self.start(gpu, &memories);
        gpu.synchronize()?;
        let of_gpu: Vec<Vec<u8>> = memories.iter().map(DeviceMemory::download).collect::<Result<_, _>>()?;
        let differing = |(a, b): (&Vec<u8>, &Vec<u8>)| a.iter().zip(b).filter(|(a, b)| a != b).count();
        Ok(of_gpu.iter().zip(&self.emulate()).map(differing).collect())
    }

    /// Bytes a second.
    fn speed(&self, gpu: &Driver) -> Result<f64, GpuError> {
        let memories = self.upload(gpu)?;
        let launch_all = || (0..REPEATS).for_each(|_| self.start(gpu, &memories));
        launch_all();
        let milliseconds = gpu.milliseconds(launch_all)?;
        Ok(self.moved as f64 * f64::from(REPEATS) / (f64::from(milliseconds) * 1e-3))
    }
}

/// Bytes a second that a copy reads and writes.
fn copy_speed(gpu: &Driver) -> Result<f64, GpuError> {
    let (mut to, from) = (gpu.allocate(COPY_BYTES)?, gpu.allocate(COPY_BYTES)?);
    to.copy_from(&from)?;
    let mut copied = Ok(());
    let milliseconds = gpu.milliseconds(|| copied = (0..REPEATS).try_for_each(|_| to.copy_from(&from)))?;
    copied?;
    Ok(2.0 * COPY_BYTES as f64 * f64::from(REPEATS) / (f64::from(milliseconds) * 1e-3))
}

/// Whether all bits are equal.
fn compare(gpu: &Driver) -> Result<bool, GpuError> {
    let mut are_equal = true;
    for (what, tokens, model) in [("real", 8, REAL), ("odd", 12, ODD), ("wide", 8, WIDE)] {
        for case in cases(tokens, model) {
            let differences = case.differences(gpu)?;
            let differing: usize = differences.iter().sum();
            are_equal &= differing == 0;
            let verdict =
                if differing == 0 { "equal".into() } else { format!("DIFFER in bytes, by buffer: {differences:?}") };
            println!("bits   {what:5} {:24} {verdict}", case.kernel);
        }
    }
    Ok(are_equal)
}

fn measure(gpu: &Driver) -> Result<(), GpuError> {
    let copy = copy_speed(gpu)?;
    println!("speed  copy                           {:7.0} GB/s", copy / 1e9);
    for case in cases(4096, REAL) {
        let speed = case.speed(gpu)?;
        println!("speed  {:30} {:7.0} GB/s, {:3.0} % of a copy", case.kernel, speed / 1e9, 100.0 * speed / copy);
    }
    Ok(())
}

fn main() -> ExitCode {
    let cache = Cache::new(Path::new("kernel-cache"));
    let gpu = match Driver::open(0, &SOURCES, &HEADER, &cache) {
        Ok(gpu) => gpu,
        Err(error) => {
            let causes = std::iter::successors(error.source(), |&cause| cause.source());
            eprintln!("{}", causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")));
            return ExitCode::from(2);
        }
    };
    println!("{}, {:?}", gpu.name(), gpu.capability());
    match compare(&gpu).and_then(|are_equal| measure(&gpu).map(|()| are_equal)) {
        Ok(are_equal) => ExitCode::from(u8::from(!are_equal)),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}
