//! Writes snapshots after steps into memory that the launcher owns, and reads one when an attempt goes on from it.
//!
//! The memory is a file without a name. It is written and read with system calls, not mapped: so it is not in this
//! process's resident set, and neither side can harm the other.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use bytemuck::{cast_slice, cast_slice_mut};
use proto::layout::{Piece, overlaps};
use proto::manifest::Progress;
use proto::plan::Plan;
use proto::progress::Phase;
use proto::snapshot::{Header, PARTS, Region, SLOTS, SnapshotLayout};
use xxhash_rust::xxh3::Xxh3;

use crate::engine::Memory;
use crate::progress::ProgressLine;
use crate::ranks::Ranks;

/// Elements that are hashed and copied at a time, so that the second finds them in the cache.
const CHUNK_NUMEL: usize = 1 << 15;

/// A snapshot cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The launcher's memory cannot be written or read: the machine has none left.
    #[error("the snapshot of step {step} cannot be {what}")]
    Io {
        /// The snapshot's step.
        step: u64,
        /// The action that failed.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// Its content is not what was written. It is not used again.
    #[error("the snapshot of step {step} is damaged on rank {rank}")]
    Damaged {
        /// The snapshot's step.
        step: u64,
        /// The rank whose part it is.
        rank: usize,
    },
    /// A peer's part cannot be used.
    #[error("another rank cannot use its part of the snapshot of step {step}")]
    Peer {
        /// The snapshot's step.
        step: u64,
    },
}

/// This rank's part of the snapshot memory, and where the others' are.
pub struct Snapshots {
    memory: File,
    layout: SnapshotLayout,
    rank: usize,
    line: ProgressLine,
}

/// A snapshot that is whole and does not count yet.
#[must_use]
pub struct Unsealed<'a> {
    snapshots: &'a Snapshots,
    slot: usize,
    header: Header,
}

impl Unsealed<'_> {
    /// From now on it counts.
    pub fn seal(self) -> Result<(), SnapshotError> {
        let Self { snapshots, slot, header } = self;
        let sealed = snapshots.memory.write_all_at(&header.to_bytes(), snapshots.own().header(slot));
        sealed.map_err(|source| SnapshotError::Io { step: header.progress.step, what: "written", source })
    }
}

impl Snapshots {
    /// `memory`: what the launcher made for a job that follows `plan`.
    pub fn new(memory: OwnedFd, plan: &Plan, ranks: &Ranks) -> Self {
        let (rank, line) = (ranks.world.rank(), ranks.line.clone());
        Self { memory: File::from(memory), layout: SnapshotLayout::of(plan), rank, line }
    }

    /// Copies this rank's part of the state after `progress.step`, in place of the older of the two snapshots it has. It counts
    /// once it is sealed.
    pub fn copy(&self, memory: &Memory, progress: Progress) -> Result<Unsealed<'_>, SnapshotError> {
        let region = self.own();
        let copied = || {
            let slot = self.older_slot()?;
            // SNP-1.
            self.memory.write_all_at(&Header::ERASED, region.header(slot))?;
            let mut hash = Xxh3::new();
            for (unit, pieces) in saved(memory) {
                self.line.enter_unit(Phase::Snapshot, unit);
                for part in 0..PARTS {
                    let mut at = region.part(slot, &memory.layout(unit).name, part);
                    for Piece { local, whole } in &pieces {
                        memory.state(unit, *local..local + whole.len())[part].read(CHUNK_NUMEL, |values| {
                            let bytes: &[u8] = cast_slice(values);
                            hash.update(bytes);
                            self.memory.write_all_at(bytes, at)?;
                            at += bytes.len() as u64;
                            Ok::<(), io::Error>(())
                        })?;
                    }
                }
            }
            Ok(Unsealed { snapshots: self, slot, header: Header { progress, checksum: hash.digest() } })
        };
        copied().map_err(|source| SnapshotError::Io { step: progress.step, what: "written", source })
    }

    /// This rank's part of the snapshot of `step` holds what was written: where the run stood. A damaged one is taken out
    /// of use.
    pub fn check(&self, step: u64, memory: &Memory) -> Result<Progress, SnapshotError> {
        let region = self.own();
        let checked = || {
            let (slot, header) = self.find(region, step)?;
            let (mut hash, mut buffer) = (Xxh3::new(), vec![0f32; CHUNK_NUMEL]);
            for (unit, pieces) in saved(memory) {
                let numel = pieces.iter().map(|piece| piece.whole.len()).sum();
                for part in 0..PARTS {
                    let at = region.part(slot, &memory.layout(unit).name, part);
                    self.read(at, numel, &mut buffer, |_, values| hash.update(cast_slice(values)))?;
                }
            }
            if hash.digest() == header.checksum {
                return Ok(Some(header.progress));
            }
            self.memory.write_all_at(&Header::ERASED, region.header(slot))?;
            Ok(None)
        };
        match checked() {
            Ok(Some(progress)) => Ok(progress),
            Ok(None) => Err(SnapshotError::Damaged { step, rank: self.rank }),
            Err(source) => Err(SnapshotError::Io { step, what: "read", source }),
        }
    }

    /// Fills parameters, masters and moments from the snapshot of `step`, of which every rank has checked its part.
    pub fn load(&self, step: u64, memory: &mut Memory) -> Result<(), SnapshotError> {
        let mut buffers = [(); PARTS].map(|()| vec![0f32; CHUNK_NUMEL]);
        let loaded = self.layout.regions().iter().try_for_each(|region| {
            let (slot, _) = self.find(region, step)?;
            (0..memory.num_units()).try_for_each(|unit| self.load_unit(unit, (region, slot), memory, &mut buffers))
        });
        loaded.map_err(|source| SnapshotError::Io { step, what: "read", source })
    }

    /// Takes this rank's snapshots of later steps than `step` out of use, which an earlier attempt has left. Training goes on
    /// from `step`, and the slot that it has next must be the older one (SNP-2).
    pub fn forget_after(&self, step: u64) -> Result<(), SnapshotError> {
        let region = self.own();
        let forgotten = self.headers(region).and_then(|headers| {
            let is_later = |header: &Option<Header>| header.is_some_and(|header| header.progress.step > step);
            let later = headers.iter().enumerate().filter(|(_, header)| is_later(header));
            later.into_iter().try_for_each(|(slot, _)| self.memory.write_all_at(&Header::ERASED, region.header(slot)))
        });
        forgotten.map_err(|source| SnapshotError::Io { step, what: "written", source })
    }

    /// Loads the part of one unit that this rank needs and finds in one region.
    fn load_unit(
        &self,
        unit: usize,
        (region, slot): (&Region, usize),
        memory: &mut Memory,
        buffers: &mut [Vec<f32>; PARTS],
    ) -> io::Result<()> {
        let name = memory.layout(unit).name.clone();
        let Some(ranges) = region.ranges.get(&name) else { return Ok(()) };
        let at = |part: usize, numel: usize| region.part(slot, &name, part) + (numel * size_of::<f32>()) as u64;
        let [masters, moments] = memory.needed(unit);
        let [buffer, first, second] = buffers;
        for shared in overlaps(ranges, &masters) {
            self.read(at(0, shared.stored), shared.numel, buffer, |done, values| {
                memory.load_masters(unit, shared.local + done, values);
            })?;
        }
        for shared in overlaps(ranges, &moments) {
            for done in (0..shared.numel).step_by(CHUNK_NUMEL) {
                let numel = CHUNK_NUMEL.min(shared.numel - done);
                let (exp_avg, exp_avg_sq) = (&mut first[..numel], &mut second[..numel]);
                self.memory.read_exact_at(cast_slice_mut(exp_avg), at(1, shared.stored + done))?;
                self.memory.read_exact_at(cast_slice_mut(exp_avg_sq), at(2, shared.stored + done))?;
                memory.load_moments(unit, shared.local + done, exp_avg, exp_avg_sq);
            }
        }
        Ok(())
    }

    /// Reads `numel` elements that begin at byte `at`, as many at a time as fit into `buffer`. `take` gets how many came
    /// before, and the elements.
    fn read(&self, at: u64, numel: usize, buffer: &mut [f32], mut take: impl FnMut(usize, &[f32])) -> io::Result<()> {
        for done in (0..numel).step_by(buffer.len()) {
            let values = &mut buffer[..(numel - done).min(CHUNK_NUMEL)];
            self.memory.read_exact_at(cast_slice_mut(values), at + (done * size_of::<f32>()) as u64)?;
            take(done, values);
        }
        Ok(())
    }

    fn own(&self) -> &Region {
        &self.layout.regions()[self.rank]
    }

    /// The slot that does not hold the newest snapshot.
    fn older_slot(&self) -> io::Result<usize> {
        let headers = self.headers(self.own())?;
        let step = |slot: &usize| headers[*slot].map_or(0, |header| header.progress.step);
        Ok((0..SLOTS).min_by_key(step).expect("there are slots"))
    }

    fn find(&self, region: &Region, step: u64) -> io::Result<(usize, Header)> {
        let headers = self.headers(region)?.into_iter().enumerate();
        let found = headers.filter_map(|(slot, header)| header.map(|header| (slot, header)));
        let missing = || io::Error::new(io::ErrorKind::NotFound, "it is not in the launcher's memory");
        found.into_iter().find(|(_, header)| header.progress.step == step).ok_or_else(missing)
    }

    fn headers(&self, region: &Region) -> io::Result<[Option<Header>; SLOTS]> {
        let mut headers = [None; SLOTS];
        for (slot, header) in headers.iter_mut().enumerate() {
            let mut bytes = Header::ERASED;
            self.memory.read_exact_at(&mut bytes, region.header(slot))?;
            *header = Header::from_bytes(&bytes);
        }
        Ok(headers)
    }
}

/// Lists the pieces that only this rank saves, by unit.
fn saved(memory: &Memory) -> impl Iterator<Item = (usize, Vec<Piece>)> + '_ {
    let units = (0..memory.num_units()).map(|unit| (unit, memory.saved(unit)));
    units.filter(|(_, pieces)| !pieces.is_empty())
}
