//! An NVML of GPUs that are not there, for tests: what dslaunch asks the driver's management library for, answered from a file that
//! tests write. `EMULATED_GPUS` names the file, which is read anew at each question, so that GPUs can change while a job runs.
//!
//! In the place of `libnvidia-ml.so.1` and beside ranks whose GPU is emulated, it makes a machine with GPUs of any.

#![allow(unsafe_code, reason = "it has the C interface of NVML")]
#![allow(non_snake_case, reason = "the names are NVML's")]
#![allow(clippy::missing_safety_doc, reason = "as NVML's documentation has it")]

use std::ffi::{CString, c_char, c_int, c_uint, c_ulonglong};
use std::sync::Mutex;

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t, nvmlMemory_v2_t, nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT,
    nvmlReturn_enum_NVML_ERROR_NOT_FOUND, nvmlReturn_enum_NVML_ERROR_TIMEOUT, nvmlReturn_enum_NVML_ERROR_UNKNOWN,
    nvmlReturn_enum_NVML_SUCCESS, nvmlReturn_t, nvmlUtilization_t,
};
use serde::Deserialize;

const SUCCESS: nvmlReturn_t = nvmlReturn_enum_NVML_SUCCESS;
/// `nvmlEventTypeXidCriticalError`
const XID: c_ulonglong = 8;

/// The machine that the file describes.
#[derive(Debug, Deserialize)]
struct Machine {
    driver: String,
    gpus: Vec<Gpu>,
}

/// One GPU.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Gpu {
    name: String,
    memory: u64,
    memory_free: u64,
    compute: (c_int, c_int),
    utilization: c_uint,
    celsius: c_uint,
    milliwatts: c_uint,
    sm_megahertz: c_uint,
    throttle_reasons: c_ulonglong,
    ecc_errors: c_ulonglong,
    /// It is told once.
    xid: Option<c_ulonglong>,
}

impl Default for Gpu {
    fn default() -> Self {
        Self {
            name: "Emulated GPU".into(),
            memory: 16 << 30,
            memory_free: 15 << 30,
            compute: (9, 0),
            utilization: 99,
            celsius: 40,
            milliwatts: 500_000,
            sm_megahertz: 1980,
            throttle_reasons: 0,
            ecc_errors: 0,
            xid: None,
        }
    }
}

/// Xids that were told: GPU and number.
static TOLD: Mutex<Vec<(usize, c_ulonglong)>> = Mutex::new(vec![]);

#[allow(clippy::disallowed_methods, reason = "a library has no arguments")]
fn machine() -> Option<Machine> {
    let path = std::env::var_os("EMULATED_GPUS")?;
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Answers a question about one GPU.
fn about<T>(device: nvmlDevice_t, to: *mut T, answer: impl FnOnce(Gpu) -> T) -> nvmlReturn_t {
    let Some(mut machine) = machine() else { return nvmlReturn_enum_NVML_ERROR_UNKNOWN };
    let index = (device as usize).wrapping_sub(1);
    if index >= machine.gpus.len() || to.is_null() {
        return nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
    }
    // SAFETY: the caller's, to be set.
    unsafe { to.write(answer(machine.gpus.swap_remove(index))) };
    SUCCESS
}

/// Writes a text that ends in zero.
fn put(text: &str, to: *mut c_char, length: c_uint) -> nvmlReturn_t {
    let text = CString::new(text).unwrap_or_default();
    let bytes = text.as_bytes_with_nul();
    if bytes.len() > length as usize {
        return nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
    }
    // SAFETY: the caller has room for as many.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), to, bytes.len()) };
    SUCCESS
}

/// As the others below: NVML's function of this name.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    if machine().is_some() { SUCCESS } else { nvmlReturn_enum_NVML_ERROR_UNKNOWN }
}

/// NVML's.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    SUCCESS
}

/// NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(to: *mut c_char, length: c_uint) -> nvmlReturn_t {
    machine().map_or(nvmlReturn_enum_NVML_ERROR_UNKNOWN, |machine| put(&machine.driver, to, length))
}

/// NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(to: *mut c_int) -> nvmlReturn_t {
    // SAFETY: the caller's, to be set.
    unsafe { to.write(13_000) };
    SUCCESS
}

/// NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(to: *mut c_uint) -> nvmlReturn_t {
    let Some(machine) = machine() else { return nvmlReturn_enum_NVML_ERROR_UNKNOWN };
    // SAFETY: the caller's, to be set.
    unsafe { to.write(machine.gpus.len() as c_uint) };
    SUCCESS
}

/// NVML's. A handle is the index plus one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, to: *mut nvmlDevice_t) -> nvmlReturn_t {
    match machine() {
        Some(machine) if (index as usize) < machine.gpus.len() => {
            // SAFETY: the caller's, to be set.
            unsafe { to.write(std::ptr::without_provenance_mut(index as usize + 1)) };
            SUCCESS
        }
        Some(_) => nvmlReturn_enum_NVML_ERROR_NOT_FOUND,
        None => nvmlReturn_enum_NVML_ERROR_UNKNOWN,
    }
}

/// NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(device: nvmlDevice_t, to: *mut c_char, length: c_uint) -> nvmlReturn_t {
    let mut name = String::new();
    match about(device, &raw mut name, |gpu| gpu.name) {
        SUCCESS => put(&name, to, length),
        error => error,
    }
}

/// NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(device: nvmlDevice_t, to: *mut c_char, length: c_uint) -> nvmlReturn_t {
    put(&format!("GPU-{}", device as usize - 1), to, length)
}

/// NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: nvmlDevice_t, to: *mut nvmlMemory_v2_t) -> nvmlReturn_t {
    about(device, to, |Gpu { memory, memory_free, .. }| nvmlMemory_v2_t {
        version: 0,
        total: memory,
        reserved: 0,
        free: memory_free,
        used: memory - memory_free,
    })
}

/// NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: nvmlDevice_t,
    major: *mut c_int,
    minor: *mut c_int,
) -> nvmlReturn_t {
    let first = about(device, major, |gpu| gpu.compute.0);
    if first == SUCCESS { about(device, minor, |gpu| gpu.compute.1) } else { first }
}

/// NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(
    device: nvmlDevice_t,
    to: *mut nvmlUtilization_t,
) -> nvmlReturn_t {
    about(device, to, |gpu| nvmlUtilization_t { gpu: gpu.utilization, memory: 50 })
}

/// NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(
    device: nvmlDevice_t,
    _sensor: c_uint,
    to: *mut c_uint,
) -> nvmlReturn_t {
    about(device, to, |gpu| gpu.celsius)
}

/// NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPowerUsage(device: nvmlDevice_t, to: *mut c_uint) -> nvmlReturn_t {
    about(device, to, |gpu| gpu.milliwatts)
}

/// NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetClockInfo(device: nvmlDevice_t, _clock: c_uint, to: *mut c_uint) -> nvmlReturn_t {
    about(device, to, |gpu| gpu.sm_megahertz)
}

/// NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(
    device: nvmlDevice_t,
    to: *mut c_ulonglong,
) -> nvmlReturn_t {
    about(device, to, |gpu| gpu.throttle_reasons)
}

/// NVML's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: nvmlDevice_t,
    _kind: c_uint,
    _counter: c_uint,
    to: *mut c_ulonglong,
) -> nvmlReturn_t {
    about(device, to, |gpu| gpu.ecc_errors)
}

/// NVML's. There is one set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(to: *mut nvmlEventSet_t) -> nvmlReturn_t {
    // SAFETY: the caller's, to be set.
    unsafe { to.write(std::ptr::without_provenance_mut(1)) };
    SUCCESS
}

/// NVML's.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetFree(_set: nvmlEventSet_t) -> nvmlReturn_t {
    SUCCESS
}

/// NVML's. Every GPU's events are in the set.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceRegisterEvents(
    _device: nvmlDevice_t,
    _types: c_ulonglong,
    _set: nvmlEventSet_t,
) -> nvmlReturn_t {
    SUCCESS
}

/// NVML's, which does not wait here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    _set: nvmlEventSet_t,
    to: *mut nvmlEventData_t,
    _timeout_ms: c_uint,
) -> nvmlReturn_t {
    let Some(machine) = machine() else { return nvmlReturn_enum_NVML_ERROR_UNKNOWN };
    let mut told = TOLD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let xids = machine.gpus.iter().enumerate().filter_map(|(index, gpu)| gpu.xid.map(|xid| (index, xid)));
    let Some((index, xid)) = xids.into_iter().find(|event| !told.contains(event)) else {
        return nvmlReturn_enum_NVML_ERROR_TIMEOUT;
    };
    told.push((index, xid));
    let device = std::ptr::without_provenance_mut(index + 1);
    let event = nvmlEventData_t { device, eventType: XID, eventData: xid, gpuInstanceId: 0, computeInstanceId: 0 };
    // SAFETY: the caller's, to be set.
    unsafe { to.write(event) };
    SUCCESS
}
