//! What a GPU needs beside kernels: the libraries of CUDA, which are loaded at run time where they are, the compiler of kernels,
//! and libtorch's half for GPUs. Nothing of it is linked: the same program starts on machines without any.

pub mod cache;
mod copying;
pub mod driver;
mod event;
pub mod gpu;
mod libraries;
pub mod nvrtc;
mod streams;
pub mod torch;

pub use libraries::{LibraryError, nccl_names};
