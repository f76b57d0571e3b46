//! The memory in which ranks keep the state of their newest steps ([`proto::snapshot`]): made once, it outlives every
//! attempt, and goes with the launcher.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use proto::manifest::Progress;
use proto::plan::Plan;
use proto::snapshot::{self, Header, SLOTS, SnapshotLayout};

/// The memory of a job's snapshots.
#[derive(Debug)]
pub struct SnapshotMemory {
    file: File,
    layout: SnapshotLayout,
}

impl SnapshotMemory {
    /// For a job that follows `plan`; `None` where that takes no snapshots. Pages are the kernel's until a rank writes to
    /// them.
    pub fn create(plan: &Plan) -> io::Result<Option<Self>> {
        if !plan.snapshots.are_taken() {
            return Ok(None);
        }
        let layout = SnapshotLayout::of(plan);
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create("dslaunch-snapshots", flags)?);
        file.set_len(layout.bytes())?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL))?;
        Ok(Some(Self { file, layout }))
    }

    /// For ranks to inherit.
    pub fn fd(&self) -> io::Result<Arc<OwnedFd>> {
        Ok(Arc::new(self.file.try_clone()?.into()))
    }

    /// The newest snapshot that all ranks have. No rank is running.
    pub fn newest(&self) -> io::Result<Option<Progress>> {
        let mut headers = vec![[None; SLOTS]; self.layout.regions().len()];
        for (region, headers) in self.layout.regions().iter().zip(&mut headers) {
            for (slot, header) in headers.iter_mut().enumerate() {
                let mut bytes = Header::ERASED;
                self.file.read_exact_at(&mut bytes, region.header(slot))?;
                *header = Header::from_bytes(&bytes);
            }
        }
        Ok(snapshot::newest(&headers))
    }
}
