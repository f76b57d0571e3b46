//! Names the place in the program that a call comes from: the innermost return addresses, each relative to the file that it is
//! in, so that a name is the same in every process of the same build.

use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;

/// How many return addresses make a site. Fewer would take all users of a helper for one place.
const NUM_FRAMES: usize = 8;

/// A file of the program: its own or a library's.
struct Module {
    name: String,
    base: usize,
    start: usize,
    end: usize,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The program.
    Program,
    /// A library that the program is linked with.
    Library,
    /// This library, the C library, the unwinder: between the program and the kernel.
    Between,
}

static MODULES: OnceLock<Vec<Module>> = OnceLock::new();

/// Innermost first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Site {
    addresses: [usize; NUM_FRAMES],
    num_frames: usize,
}

impl Site {
    /// The place that this is called from. It allocates nothing once it has been called.
    pub fn here() -> Self {
        let _ = modules();
        let mut site = Self::default();
        // SAFETY: `add` is of the type that the unwinder calls, and `site` is the only thing it is given, which outlives the walk.
        unsafe { _Unwind_Backtrace(add, (&raw mut site).cast()) };
        site
    }

    /// `what` happens here: a number that is another for each.
    pub fn id(&self, what: &[&str]) -> u64 {
        let mut hash = Fnv::default();
        what.iter().for_each(|word| hash.add(word.as_bytes()));
        for (module, offset) in self.frames() {
            hash.add(module.name.as_bytes());
            hash.add(&offset.to_le_bytes());
        }
        // 0 is nobody's.
        hash.0 | 1
    }

    /// The frames for a record: `0x12ab` in the program, `library+0x12ab` elsewhere.
    pub fn describe(&self) -> String {
        let frame = |(module, offset): (&Module, usize)| match module.kind {
            Kind::Program => format!("{offset:#x}"),
            _ => format!("{}+{offset:#x}", module.name),
        };
        self.frames().map(frame).collect::<Vec<_>>().join(" ")
    }

    fn frames(&self) -> impl Iterator<Item = (&'static Module, usize)> {
        self.addresses[..self.num_frames].iter().filter_map(|&address| Some((module_of(address)?, address))).map(
            // The call lies before the address that it returns to.
            |(module, address)| (module, address - module.base - 1),
        )
    }
}

extern "C" fn add(context: *mut c_void, site: *mut c_void) -> c_int {
    // _URC_NO_REASON and _URC_END_OF_STACK.
    let (go_on, end) = (0, 5);
    // SAFETY: `here` gave it, and uses it again only after the walk.
    let site = unsafe { &mut *site.cast::<Site>() };
    // SAFETY: the unwinder gave `context`, for this call.
    let address = unsafe { _Unwind_GetIP(context) };
    if module_of(address).is_some_and(|module| module.kind != Kind::Between) {
        site.addresses[site.num_frames] = address;
        site.num_frames += 1;
    }
    if site.num_frames == NUM_FRAMES { end } else { go_on }
}

#[link(name = "gcc_s")]
unsafe extern "C" {
    fn _Unwind_Backtrace(add: extern "C" fn(*mut c_void, *mut c_void) -> c_int, argument: *mut c_void) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

fn module_of(address: usize) -> Option<&'static Module> {
    modules().iter().find(|module| (module.start..module.end).contains(&address))
}

/// Those that are there when it is called first. What is loaded later has no frames.
fn modules() -> &'static [Module] {
    MODULES.get_or_init(|| {
        let mut modules: Vec<Module> = vec![];
        // SAFETY: `list` is of the type that is called, and `modules` is what it takes; both are gone from there on return.
        unsafe { libc::dl_iterate_phdr(Some(list), (&raw mut modules).cast()) };
        modules
    })
}

unsafe extern "C" fn list(info: *mut libc::dl_phdr_info, _: libc::size_t, modules: *mut c_void) -> c_int {
    // SAFETY: `modules` gave the vector, which nobody else uses meanwhile; the loader gives `info`, for this call, with a name and
    // as many headers as it says.
    let (modules, info, name, headers) = unsafe {
        let info = &*info;
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
        (&mut *modules.cast::<Vec<Module>>(), info, CStr::from_ptr(info.dlpi_name).to_string_lossy(), headers)
    };
    let base = info.dlpi_addr as usize;
    let loaded = headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
    let ends = loaded.clone().map(|header| base + (header.p_vaddr + header.p_memsz) as usize);
    let starts = loaded.map(|header| base + header.p_vaddr as usize);
    let name = name.rsplit('/').next().unwrap_or_default().to_owned();
    let between = ["libio_faults", "libc.", "libgcc_s", "ld-linux", "linux-vdso"];
    let kind = match name.as_str() {
        "" => Kind::Program,
        name if between.iter().any(|prefix| name.starts_with(prefix)) => Kind::Between,
        _ => Kind::Library,
    };
    modules.push(Module { name, base, start: starts.min().unwrap_or(0), end: ends.max().unwrap_or(0), kind });
    0
}

/// FNV-1a: Fowler, Noll and Vo.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        // Between this and the next.
        self.0 = (self.0 ^ 0xff).wrapping_mul(0x100_0000_01b3);
    }
}
