//! NCCL's functions, looked up by name in the library that is there.

#![allow(unsafe_code, reason = "NCCL is C")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::path::PathBuf;
use std::ptr;

use libloading::Library;

use super::error::NcclError;

/// `ncclResult_t`: any number, whatever the version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Code(pub c_int);

impl Code {
    pub const SUCCESS: Self = Self(0);
    /// A non-blocking call is under way.
    pub const IN_PROGRESS: Self = Self(7);
}

/// `ncclComm_t`
pub(super) type Comm = *mut c_void;

/// `cudaStream_t`
pub(super) type CudaStream = *mut c_void;

/// The address of a communicator to be: rank 0 makes one, and all ranks of a job enter by it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct UniqueId([u8; Self::BYTES]);

impl UniqueId {
    /// Its size.
    pub const BYTES: usize = 128;

    /// As other ranks get it.
    pub fn bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl From<[u8; Self::BYTES]> for UniqueId {
    fn from(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }
}

/// Who has it can enter the job's exchanges: it is not for logs.
impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UniqueId(..)")
    }
}

/// `ncclConfig_t` up to `splitShare`, marked as of 2.17: each version reads as much of it as it knows of that mark.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// What the library chooses.
    const UNDEFINED: c_int = c_int::MIN;

    /// Calls return at once; the rest is the library's choice, and that of the `NCCL_*` variables.
    pub fn non_blocking() -> Self {
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 21_700,
            blocking: 0,
            cga_cluster_size: Self::UNDEFINED,
            min_ctas: Self::UNDEFINED,
            max_ctas: Self::UNDEFINED,
            net_name: ptr::null(),
            split_share: Self::UNDEFINED,
        }
    }
}

/// NCCL's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 2
    pub major: u32,
    /// 28
    pub minor: u32,
    /// 9
    pub patch: u32,
}

impl Version {
    /// The first with `ncclCommSplit`.
    pub const OLDEST: Self = Self { major: 2, minor: 18, patch: 0 };

    /// `22809` is 2.28.9, as NCCL has counted since 2.9.
    fn of(code: c_int) -> Self {
        let code = u32::try_from(code).unwrap_or(0);
        Self { major: code / 10_000, minor: code % 10_000 / 100, patch: code % 100 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// There is no NCCL that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// No name leads to a library.
    #[error("NCCL cannot be loaded: {0}")]
    NotFound(String),
    /// It lacks a function.
    #[error("{path} has no {function}")]
    Lacks {
        /// The library.
        path: String,
        /// What is not there.
        function: &'static str,
    },
    /// It is too old, or of another major version.
    #[error("{path} is NCCL {version}, and 2.18 or a later 2 is needed")]
    Version {
        /// The library.
        path: String,
        /// Its version.
        version: Version,
    },
    /// It does not tell its version.
    #[error("{path}: ncclGetVersion returns {code}")]
    NoVersion {
        /// The library.
        path: String,
        /// `ncclResult_t`
        code: i32,
    },
}

/// Declares the table of functions, and how it is filled.
macro_rules! functions {
    ($($name:ident: $symbol:literal = fn($($arg:ty),*) -> $result:ty;)*) => {
        /// The functions that are used, as `nccl.h` declares them.
        pub(super) struct Functions {
            $(pub $name: unsafe extern "C" fn($($arg),*) -> $result,)*
        }

        impl Functions {
            /// # Safety
            /// The library is NCCL.
            unsafe fn of(library: &Library) -> Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: the caller vouches for the library, and so for the types of its functions; they are copied out,
                    // and the library is never unloaded.
                    $($name: *unsafe { library.get($symbol.as_bytes()) }.map_err(|_| $symbol)?,)*
                })
            }
        }
    };
}

functions! {
    get_version: "ncclGetVersion" = fn(*mut c_int) -> Code;
    get_unique_id: "ncclGetUniqueId" = fn(*mut UniqueId) -> Code;
    get_error_string: "ncclGetErrorString" = fn(Code) -> *const c_char;
    get_last_error: "ncclGetLastError" = fn(Comm) -> *const c_char;
    comm_init_rank_config: "ncclCommInitRankConfig" = fn(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> Code;
    comm_split: "ncclCommSplit" = fn(Comm, c_int, c_int, *mut Comm, *mut Config) -> Code;
    comm_get_async_error: "ncclCommGetAsyncError" = fn(Comm, *mut Code) -> Code;
    comm_finalize: "ncclCommFinalize" = fn(Comm) -> Code;
    comm_destroy: "ncclCommDestroy" = fn(Comm) -> Code;
    comm_abort: "ncclCommAbort" = fn(Comm) -> Code;
    all_reduce: "ncclAllReduce" =
        fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, CudaStream) -> Code;
    reduce_scatter: "ncclReduceScatter" =
        fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, CudaStream) -> Code;
    all_gather: "ncclAllGather" = fn(*const c_void, *mut c_void, usize, c_int, Comm, CudaStream) -> Code;
    broadcast: "ncclBroadcast" = fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, CudaStream) -> Code;
    send: "ncclSend" = fn(*const c_void, usize, c_int, c_int, Comm, CudaStream) -> Code;
    recv: "ncclRecv" = fn(*mut c_void, usize, c_int, c_int, Comm, CudaStream) -> Code;
}

/// NCCL, loaded for as long as the process lives.
pub struct Nccl {
    pub(super) functions: Functions,
    version: Version,
    path: String,
}

impl Nccl {
    /// Loads the first of `names` that can be loaded: paths, or names that the system's loader knows.
    ///
    /// # Errors
    /// There is none, or it is another version than this program knows.
    pub fn load(names: &[PathBuf]) -> Result<&'static Self, LoadError> {
        let mut reason = "no name to look for".to_owned();
        for name in names {
            // SAFETY: loading runs the library's initialisers, of which NCCL has harmless ones: the names are NCCL's own, and who
            // can put another library under them can put one under libc's name too.
            match unsafe { Library::new(name) } {
                Ok(library) => return Self::of(Box::leak(Box::new(library)), name.display().to_string()),
                Err(error) => reason = error.to_string(),
            }
        }
        Err(LoadError::NotFound(reason))
    }

    fn of(library: &'static Library, path: String) -> Result<&'static Self, LoadError> {
        // SAFETY: its name is NCCL's.
        let functions = match unsafe { Functions::of(library) } {
            Ok(functions) => functions,
            Err(function) => return Err(LoadError::Lacks { path, function }),
        };
        let mut number = 0;
        // SAFETY: it writes one number.
        let code = unsafe { (functions.get_version)(&raw mut number) };
        if code != Code::SUCCESS {
            return Err(LoadError::NoVersion { path, code: code.0 });
        }
        let version = Version::of(number);
        if version < Version::OLDEST || version.major != Version::OLDEST.major {
            return Err(LoadError::Version { path, version });
        }
        Ok(Box::leak(Box::new(Self { functions, version, path })))
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The name that it was found under.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A new id, for all ranks of a communicator to be. Needs neither a GPU nor a driver.
    pub fn unique_id(&self) -> Result<UniqueId, NcclError> {
        let mut id = UniqueId([0; UniqueId::BYTES]);
        // SAFETY: it writes as many bytes.
        let code = unsafe { (self.functions.get_unique_id)(&raw mut id) };
        self.checked("ncclGetUniqueId", code, ptr::null_mut()).map(|()| id)
    }

    /// Whether a call has succeeded. `comm`: whose call it was, or null.
    pub(super) fn checked(&self, call: &'static str, code: Code, comm: Comm) -> Result<(), NcclError> {
        if code == Code::SUCCESS {
            return Ok(());
        }
        // SAFETY: a C string for any code, and one of the communicator or of the process; both are copied at once.
        let [text, last] = unsafe {
            [(self.functions.get_error_string)(code), (self.functions.get_last_error)(comm)].map(|text| {
                if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().trim().to_owned() }
            })
        };
        Err(NcclError::Failed { call, code: code.0, text, last })
    }
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NCCL {}", self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_nccl_counts() {
        assert_eq!(Version::of(22_809).to_string(), "2.28.9");
        assert!(Version::of(21_705) < Version::OLDEST && Version::of(21_800) == Version::OLDEST);
    }

    #[test]
    fn what_cannot_be_loaded_has_a_reason() {
        assert_eq!(Nccl::load(&[]).unwrap_err(), LoadError::NotFound("no name to look for".into()));
        let error = Nccl::load(&["/nowhere/libnccl.so.2".into()]).unwrap_err().to_string();
        assert!(error.contains("/nowhere/libnccl.so.2"), "{error}");
        let lacks = LoadError::Lacks { path: "libc.so.6".into(), function: "ncclGetVersion" };
        assert_eq!(Nccl::load(&["libc.so.6".into()]).unwrap_err(), lacks);
    }

    #[test]
    fn ids_are_not_for_logs() {
        assert_eq!(format!("{:?}", UniqueId([7; 128])), "UniqueId(..)");
    }
}
