//! What a GPU needs beside kernels: the libraries of CUDA, which are loaded at run time where they are, and the compiler of
//! kernels. Nothing here is linked: the same program starts on machines without any of it.

pub mod cache;
pub mod driver;
pub mod gpu;
mod libraries;
pub mod nvrtc;

pub use libraries::LibraryError;
