//! The disk that a run directory lies on.

use std::path::Path;

use nix::sys::statvfs::statvfs;

/// A disk with less than this left is full.
const FULL_BYTES: u64 = 64 << 10;

/// Says that the disk of `folder` is full: a rank that cannot write may not be able to say so either.
pub fn full(folder: &Path) -> Option<String> {
    let disk = statvfs(folder).ok()?;
    let left = disk.blocks_available().saturating_mul(disk.fragment_size());
    (left < FULL_BYTES).then(|| format!("the disk of {} is full: {left} bytes are left", folder.display()))
}
