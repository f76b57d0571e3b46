//! Compiles kernels for a GPU, by NVIDIA's run-time compiler. It needs no GPU and no driver.

#![allow(unsafe_code, reason = "NVRTC is C")]

use std::ffi::{CStr, CString, c_char};
use std::ptr;

use cudarc::nvrtc::result;
use cudarc::nvrtc::sys::{self, nvrtcProgram, nvrtcResult};

use super::libraries::{self, LibraryError};

/// A file of CUDA C++.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Its name, for messages and for files that include it.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// Compute capability of a GPU: its instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capability {
    /// 9 of 9.0.
    pub major: u32,
    /// 0 of 9.0.
    pub minor: u32,
}

/// Machine code of one source for one GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// To be loaded as a module.
    pub cubin: Vec<u8>,
    /// What each kernel takes of a multiprocessor.
    pub kernels: Vec<Usage>,
}

/// What one kernel takes of a multiprocessor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The kernel's name.
    pub name: String,
    /// Registers of each thread.
    pub registers: u32,
    /// Bytes of registers that each thread keeps in memory, because there are too few.
    pub spilled_bytes: u32,
}

/// Kernels cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum NvrtcError {
    /// The compiler is not there.
    #[error("kernels cannot be compiled")]
    Missing(#[from] LibraryError),
    /// The compiler refuses a source.
    #[error("{name} does not compile for {major}.{minor}:\n{log}", major = .capability.major, minor = .capability.minor)]
    Refused {
        /// The source's name.
        name: &'static str,
        /// Compiled for.
        capability: Capability,
        /// What the compiler says.
        log: String,
    },
    /// The compiler fails.
    #[error("NVRTC failed: {0:?}")]
    Failed(nvrtcResult),
}

impl From<result::NvrtcError> for NvrtcError {
    fn from(result::NvrtcError(code): result::NvrtcError) -> Self {
        Self::Failed(code)
    }
}

/// What sources are compiled with, beside the GPU's instruction set. Nothing is contracted: the same source gives the same bits of
/// results on every GPU and in the emulation.
pub(super) const OPTIONS: [&str; 3] = ["--std=c++17", "--fmad=false", "--ptxas-options=--verbose"];

/// The compiler.
#[derive(Debug)]
pub struct Nvrtc(());

impl Nvrtc {
    /// Loads it. What it is built of comes first: it would not find that by itself.
    pub fn load() -> Result<Self, NvrtcError> {
        libraries::load("libnvrtc-builtins.so")?;
        libraries::load("libnvrtc.so")?;
        Ok(Self(()))
    }

    /// Compiles a source, which may include `header`, for a GPU.
    pub fn compile(&self, source: &Source, header: &Source, capability: Capability) -> Result<Compiled, NvrtcError> {
        let program = Program::new(source, header)?;
        let Capability { major, minor } = capability;
        let target = format!("--gpu-architecture=sm_{major}{minor}");
        let options: Vec<&str> = OPTIONS.into_iter().chain([target.as_str()]).collect();
        // SAFETY: the program is there until it is dropped.
        let compiled = unsafe { result::compile_program(program.0, &options) };
        let log = program.log()?;
        match compiled {
            Ok(()) => Ok(Compiled { cubin: program.cubin()?, kernels: usages(&log) }),
            Err(result::NvrtcError(nvrtcResult::NVRTC_ERROR_COMPILATION)) => {
                Err(NvrtcError::Refused { name: source.name, capability, log })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// A program of NVRTC's. It has copies of the texts.
struct Program(nvrtcProgram);

impl Program {
    fn new(source: &Source, header: &Source) -> Result<Self, NvrtcError> {
        let text = |text: &str| CString::new(text).expect("sources have no zero byte");
        let (name, body) = (text(source.name), text(source.text));
        let (header_name, header) = (text(header.name), text(header.text));
        let mut program = ptr::null_mut();
        // SAFETY: one header and its name, and texts that end in zero; all are there until the call returns.
        let created = unsafe {
            sys::nvrtcCreateProgram(
                &raw mut program,
                body.as_ptr(),
                name.as_ptr(),
                1,
                &header.as_ptr(),
                &header_name.as_ptr(),
            )
        };
        created.result()?;
        Ok(Self(program))
    }

    fn log(&self) -> Result<String, NvrtcError> {
        // SAFETY: the program is there.
        let log = unsafe { result::get_program_log(self.0) }?;
        // SAFETY: the log ends in zero.
        Ok(unsafe { CStr::from_ptr(log.as_ptr()) }.to_string_lossy().into_owned())
    }

    fn cubin(&self) -> Result<Vec<u8>, NvrtcError> {
        let mut bytes = 0;
        // SAFETY: the program is there and compiled.
        unsafe { sys::nvrtcGetCUBINSize(self.0, &raw mut bytes) }.result()?;
        let mut cubin = vec![0u8; bytes];
        // SAFETY: as many bytes as it has said.
        unsafe { sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast::<c_char>()) }.result()?;
        Ok(cubin)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: nobody has it any more. It only fails for a program that is none.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// Reads what the assembler says of each kernel:
///
/// ```text
/// ptxas info    : Compiling entry function 'swiglu_forward_bf16' for 'sm_90'
/// ptxas info    : Function properties for swiglu_forward_bf16
///     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 40 registers, used 0 barriers
/// ```
fn usages(log: &str) -> Vec<Usage> {
    let mut usages: Vec<Usage> = vec![];
    let number_before = |line: &str, what: &str| -> Option<u32> {
        line.split(what).next().filter(|before| before.len() < line.len())?.split_whitespace().next_back()?.parse().ok()
    };
    for line in log.lines() {
        if let Some(name) = line.split("entry function '").nth(1).and_then(|rest| rest.split('\'').next()) {
            usages.push(Usage { name: name.to_owned(), registers: 0, spilled_bytes: 0 });
        }
        let Some(last) = usages.last_mut() else { continue };
        if let Some(bytes) = number_before(line, " bytes spill stores") {
            last.spilled_bytes += bytes;
        }
        if let Some(registers) = number_before(line, " registers") {
            last.registers = registers;
        }
    }
    usages
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Capability = Capability { major: 9, minor: 0 };
    const HEADER: Source = Source { name: "shared.cuh", text: "#define TWICE(x) (2 * (x))\n" };

    fn compile(text: &'static str) -> Result<Compiled, NvrtcError> {
        let nvrtc = Nvrtc::load().expect("the compiler is in torch's packages");
        nvrtc.compile(&Source { name: "some.cu", text }, &HEADER, H100)
    }

    #[test]
    fn a_source_becomes_machine_code() {
        let text = "#include \"shared.cuh\"\nextern \"C\" __global__ void twice(int* x) { *x = TWICE(*x); }";
        let Compiled { cubin, kernels } = compile(text).unwrap();
        assert!(cubin.starts_with(b"\x7fELF"));
        let [Usage { name, registers, spilled_bytes }] = &kernels[..] else { panic!("{kernels:?}") };
        assert_eq!((name.as_str(), *spilled_bytes), ("twice", 0));
        assert!((1..64).contains(registers), "{registers}");
    }

    #[test]
    fn a_source_that_does_not_compile_is_named_with_the_compilers_words() {
        let error = compile("extern \"C\" __global__ void broken() { nothing(); }").unwrap_err().to_string();
        assert!(error.starts_with("some.cu does not compile for 9.0:\n"), "{error}");
        assert!(error.contains("identifier \"nothing\" is undefined"), "{error}");
    }

    #[test]
    fn what_kernels_take_is_read_from_the_assemblers_words() {
        let log = "ptxas info    : Compiling entry function 'one' for 'sm_90'\n\
                   \x20   8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads\n\
                   ptxas info    : Used 255 registers, used 1 barriers, 128 bytes smem\n\
                   ptxas info    : Compiling entry function 'two' for 'sm_90'\n\
                   ptxas info    : Used 40 registers\n";
        let usage = |name: &str, registers, spilled_bytes| Usage { name: name.into(), registers, spilled_bytes };
        assert_eq!(usages(log), [usage("one", 255, 12), usage("two", 40, 0)]);
    }
}
