//! Every GPU kernel, emulated: against the CPU's operations in fp64, in four orders of threads, with sizes that fit nothing, and
//! outputs that hold NaN before.

mod accumulate;
mod adamw;
mod cross_entropy;
mod dropout;
mod emulator;
mod fp8;
mod harness;
mod norm;
mod quantized;
mod rope;
mod round;
mod sums;
mod swiglu;
