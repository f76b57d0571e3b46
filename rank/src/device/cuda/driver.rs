//! A GPU that is there, through NVIDIA's driver.

#![allow(unsafe_code, reason = "the driver is C")]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CString, c_int, c_uint, c_void};
use std::io;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use comm::nccl::Streams;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUfunction, CUmodule, CUstream};
use proto::compute_capability::{LEAST, LEAST_FOR_FP8};

use super::cache::Cache;
use super::copying::{self, CopyStreams, DriverCopier};
use super::event::Event;
use super::gpu::{Copier, CopyBeside, Gpu, Mark};
use super::libraries::{self, LibraryError};
use super::nvrtc::{Capability, Nvrtc, NvrtcError, Source};
use super::streams::DriverStreams;
use super::torch::{self, TorchError};

/// A GPU cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// There is no driver.
    #[error("there is no NVIDIA driver")]
    NoDriver(#[source] LibraryError),
    /// There are fewer GPUs.
    #[error("there is no GPU {ordinal}: the driver finds {count}")]
    NoGpu {
        /// Counted from 0.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The driver fails.
    #[error("{call} failed: {}", text(.error))]
    Failed {
        /// The call.
        call: &'static str,
        /// Its error.
        error: DriverError,
    },
    /// It is older than what is compiled for.
    #[error("{name} has compute capability {major}.{minor}, and at least {least}.0 is needed", major = .capability.major,
        minor = .capability.minor, least = LEAST.0)]
    TooOld {
        /// The GPU's name.
        name: String,
        /// Its instruction set.
        capability: Capability,
    },
    /// It does not multiply in fp8.
    #[error("model.matmul: fp8 needs compute capability {}.{}, and {name} has {}.{}", LEAST_FOR_FP8.0, LEAST_FOR_FP8.1,
        .capability.major, .capability.minor)]
    NoFp8 {
        /// The GPU's name.
        name: String,
        /// Its instruction set.
        capability: Capability,
    },
    /// libtorch's half for GPUs is not there.
    #[error("libtorch cannot use GPUs")]
    NoTorch(#[source] LibraryError),
    /// libtorch refuses the GPU.
    #[error(transparent)]
    Torch(#[from] TorchError),
    /// Its kernels cannot be compiled.
    #[error(transparent)]
    Kernels(#[from] NvrtcError),
}

pub(super) fn text(error: &DriverError) -> String {
    let name = error.error_name().map_or_else(|_| format!("{error:?}"), |name| name.to_string_lossy().into_owned());
    error.error_string().map_or(name.clone(), |text| format!("{name}, {}", text.to_string_lossy()))
}

/// `map_err` for a call of the driver's.
pub(super) fn failed(call: &'static str) -> impl FnOnce(DriverError) -> GpuError {
    move |error| GpuError::Failed { call, error }
}

/// One GPU of this process, in the context that libtorch uses too. Work is done in order: on one stream, which is libtorch's too.
/// `!Send`: the thread that opened it is the one whose context and stream it is.
pub struct Driver {
    ordinal: usize,
    name: String,
    capability: Capability,
    multiprocessors: u32,
    context: CUcontext,
    stream: CUstream,
    copies: CopyStreams,
    /// Bytes of [`Gpu::allocate`].
    allocated: Cell<u64>,
    has_same_bits: bool,
    modules: Vec<CUmodule>,
    /// By name, as they are asked for.
    functions: RefCell<HashMap<String, CUfunction>>,
    of_thread: PhantomData<*const ()>,
}

impl Driver {
    /// Opens the GPU number `ordinal` and loads its kernels, from `cache` or compiled.
    pub fn open(ordinal: usize, sources: &[Source], header: &Source, cache: &Cache) -> Result<Self, GpuError> {
        libraries::load_of_driver("libcuda.so.1").map_err(GpuError::NoDriver)?;
        result::init().map_err(failed("cuInit"))?;
        let count = result::device::get_count().map_err(failed("cuDeviceGetCount"))? as usize;
        if ordinal >= count {
            return Err(GpuError::NoGpu { ordinal, count });
        }
        let device = result::device::get(ordinal as c_int).map_err(failed("cuDeviceGet"))?;
        let number = |attribute| number(device, attribute);
        let capability = Capability {
            major: number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        };
        let name = result::device::get_name(device).map_err(failed("cuDeviceGetName"))?;
        if (capability.major, capability.minor) < LEAST {
            return Err(GpuError::TooOld { name, capability });
        }
        // SAFETY: a device that the driver has given; its context stays for the life of the process. A thread that waits for the
        // GPU sleeps, and leaves its core to others.
        let context = unsafe {
            sys::cuDevicePrimaryCtxSetFlags_v2(device, sys::CUctx_flags_enum::CU_CTX_SCHED_BLOCKING_SYNC as c_uint)
                .result()
                .map_err(failed("cuDevicePrimaryCtxSetFlags"))?;
            let context = result::primary_ctx::retain(device).map_err(failed("cuDevicePrimaryCtxRetain"))?;
            result::ctx::set_current(context).map_err(failed("cuCtxSetCurrent"))?;
            context
        };
        let modules = sources.iter().map(|source| {
            let cubin = cache.cubin(source, header, capability, Nvrtc::load)?;
            // SAFETY: machine code as the compiler has made it; the driver copies it.
            unsafe { result::module::load_data(cubin.as_ptr().cast::<c_void>()) }.map_err(failed("cuModuleLoadData"))
        });
        Ok(Self {
            ordinal,
            name,
            context,
            stream: result::stream::null(),
            copies: CopyStreams::new()?,
            allocated: Cell::new(0),
            has_same_bits: false,
            modules: modules.collect::<Result<_, GpuError>>()?,
            multiprocessors: number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            capability,
            functions: RefCell::default(),
            of_thread: PhantomData,
        })
    }

    /// Whether it multiplies in fp8.
    pub fn check_fp8(&self) -> Result<(), GpuError> {
        let Capability { major, minor } = self.capability;
        match (major, minor) >= LEAST_FOR_FP8 {
            true => Ok(()),
            false => Err(GpuError::NoFp8 { name: self.name.clone(), capability: self.capability }),
        }
    }

    /// Lets libtorch compute on it too, from now on, on a stream of their own. Before anything has asked libtorch for a GPU.
    /// `has_same_bits`: see [`Gpu::has_same_bits`].
    pub fn share_with_torch(&mut self, has_same_bits: bool) -> Result<(), GpuError> {
        self.has_same_bits = has_same_bits;
        torch::load().map_err(GpuError::NoTorch)?;
        self.stream = torch::use_own_stream(self.ordinal)?.cast();
        torch::sum_products_in_fp32()?;
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its instruction set.
    pub fn capability(&self) -> Capability {
        self.capability
    }

    /// Waits until all that was started is done.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        result::ctx::synchronize().map_err(failed("cuCtxSynchronize"))
    }

    /// Allocates memory and copies `bytes` there.
    pub fn upload(&self, bytes: &[u8]) -> Result<DeviceMemory<'_>, GpuError> {
        let memory = self.allocate(bytes.len())?;
        // SAFETY: as many bytes as were allocated.
        unsafe { result::memcpy_htod_sync(memory.start, bytes) }.map_err(failed("cuMemcpyHtoD"))?;
        Ok(memory)
    }

    /// Allocates memory, which holds anything.
    pub fn allocate(&self, bytes: usize) -> Result<DeviceMemory<'_>, GpuError> {
        // SAFETY: nothing is assumed of what it holds.
        let start = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(failed("cuMemAlloc"))?;
        Ok(DeviceMemory { start, bytes, driver: PhantomData })
    }

    /// Milliseconds on the GPU of what `work` starts.
    pub fn milliseconds(&self, work: impl FnOnce()) -> Result<f32, GpuError> {
        let start = Event::record(self.stream)?;
        work();
        Event::record(self.stream)?.milliseconds_since(&start)
    }

    /// The kernel of this name, in one of the modules.
    fn function(&self, name: &str) -> CUfunction {
        *self.functions.borrow_mut().entry(name.to_owned()).or_insert_with(|| {
            let c_name = CString::new(name).expect("kernels have names without zero bytes");
            // SAFETY: modules stay loaded for the life of the process.
            let mut found = self
                .modules
                .iter()
                .filter_map(|&module| unsafe { result::module::get_function(module, c_name.clone()) }.ok());
            found.next().unwrap_or_else(|| panic!("no kernel {name}"))
        })
    }
}

fn number(device: CUdevice, attribute: CUdevice_attribute) -> Result<u32, GpuError> {
    // SAFETY: a device that the driver has given.
    let number = unsafe { result::device::get_attribute(device, attribute) }.map_err(failed("cuDeviceGetAttribute"))?;
    Ok(number as u32)
}

impl Gpu for Driver {
    fn memory(&self) -> tch::Device {
        tch::Device::Cuda(self.ordinal)
    }

    unsafe fn launch(&self, kernel: &str, grid: u32, block: u32, args: &mut [*mut c_void]) {
        let function = self.function(kernel);
        // SAFETY: the caller vouches for the arguments.
        let launched = unsafe { result::launch_kernel(function, (grid, 1, 1), (block, 1, 1), 0, self.stream, args) };
        if let Err(error) = launched {
            panic!("{kernel} does not start: {}", text(&error));
        }
    }

    fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    fn allocate(&self, bytes: usize) -> NonNull<u8> {
        // SAFETY: nothing is assumed of what it holds; it is never freed.
        let start = match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(start) => start,
            Err(error) => panic!("CUDA out of memory: {bytes} bytes that the plan asks for ({})", text(&error)),
        };
        // SAFETY: as many bytes as were allocated.
        if let Err(error) = unsafe { result::memset_d8_async(start, 0, bytes, self.stream) } {
            panic!("cuMemsetD8Async failed: {}", text(&error));
        }
        self.allocated.set(self.allocated.get() + bytes as u64);
        NonNull::new(ptr::with_exposed_provenance_mut(start as usize)).expect("the driver gives no null")
    }

    fn mark(&self) -> Box<dyn Mark> {
        Box::new(Event::record_for_waiting(self.stream, self.stream).unwrap_or_else(|error| panic!("{error}")))
    }

    fn pin(&self, bytes: usize) -> NonNull<u8> {
        // Not in the driver's words, which say that the GPU is out of memory.
        copying::pin(bytes).unwrap_or_else(|_| panic!("Cannot allocate memory: {bytes} pinned bytes of the host"))
    }

    unsafe fn copy_beside(&self, copy: &CopyBeside, after: &dyn Mark) -> Box<dyn Mark> {
        // SAFETY: the caller vouches for the memory.
        let done = unsafe { self.copies.copy(copy, after, self.stream) };
        Box::new(done.unwrap_or_else(|error| panic!("{error}")))
    }

    fn streams(&self) -> Rc<dyn Streams> {
        Rc::new(DriverStreams { context: self.context, computing: self.stream })
    }

    fn copier(&self, bytes: usize) -> io::Result<Box<dyn Copier>> {
        let copier = DriverCopier::new(self.context, self.stream, bytes).map_err(io::Error::other)?;
        Ok(Box::new(copier))
    }

    fn has_same_bits(&self) -> bool {
        self.has_same_bits
    }

    fn peak_bytes(&self) -> u64 {
        let (_, of_torch) = torch::allocated_bytes(self.ordinal).unwrap_or_else(|error| panic!("{error}"));
        self.allocated.get() + of_torch
    }
}

/// Memory of a GPU.
pub struct DeviceMemory<'a> {
    start: CUdeviceptr,
    bytes: usize,
    driver: PhantomData<&'a Driver>,
}

impl DeviceMemory<'_> {
    /// Its address, as kernels take it.
    pub fn address(&self) -> u64 {
        self.start
    }

    /// A copy of what it holds, once all that was started is done.
    pub fn download(&self) -> Result<Vec<u8>, GpuError> {
        let mut bytes = vec![0u8; self.bytes];
        // SAFETY: as many bytes as were allocated.
        unsafe { result::memcpy_dtoh_sync(&mut bytes, self.start) }.map_err(failed("cuMemcpyDtoH"))?;
        Ok(bytes)
    }

    /// Copies what another memory of the same size holds, on the GPU.
    pub fn copy_from(&mut self, other: &DeviceMemory) -> Result<(), GpuError> {
        assert_eq!(self.bytes, other.bytes);
        // SAFETY: both are as large; what is under way there is done first.
        unsafe { result::memcpy_dtod_async(self.start, other.start, self.bytes, result::stream::null()) }
            .map_err(failed("cuMemcpyDtoD"))
    }
}

impl Drop for DeviceMemory<'_> {
    fn drop(&mut self) {
        // SAFETY: nobody has it any more; the driver waits for kernels that do. An error here has been one before.
        let _ = unsafe { result::free_sync(self.start) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_says_so() {
        if std::path::Path::new("/proc/driver/nvidia/version").exists() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let header = Source { name: "shared.cuh", text: "" };
        let error = Driver::open(0, &[], &header, &Cache::new(dir.path())).err().expect("there is none");
        assert_eq!(error.to_string(), "there is no NVIDIA driver");
        assert!(std::error::Error::source(&error).unwrap().to_string().starts_with("libcuda.so.1 cannot be loaded"));
    }
}
