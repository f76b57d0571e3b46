//! Maps a file as bytes without reading it: the kernel loads the pages that are touched.

#![allow(unsafe_code, reason = "a memory map of a file")]

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};

/// A read-only memory map of a whole file.
#[derive(Debug)]
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the map is private and read-only. A file that another program cuts short while it is mapped would
        // end this process with SIGBUS, as it would end any program that maps it; checkpoints and prepared data are
        // written under other names and renamed, never rewritten in place.
        unsafe { Mmap::map(&file) }.map(Self)
    }

    /// Takes what was read so far out of this process's memory; the kernel brings it back when it is read again.
    pub fn release(&self) -> io::Result<()> {
        // SAFETY: pages of a file that nobody has written to are dropped; reading them again gives the same bytes.
        unsafe { self.0.unchecked_advise(UncheckedAdvice::DontNeed) }
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
