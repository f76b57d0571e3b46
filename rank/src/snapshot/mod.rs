//! Writes snapshots after steps into memory that the launcher owns, and reads one when an attempt goes on from it.
//!
//! A snapshot is begun after a step and finished before the next update changes what it is made of: at once where the device is the
//! CPU, and from a GPU while the next step computes (`copying.rs`).
//!
//! The memory is a file without a name. It is written and read with system calls, not mapped: so it is not in this
//! process's resident set, and neither side can harm the other.

mod copying;
mod tiles;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytemuck::{cast_slice, cast_slice_mut};
use proto::layout::overlaps;
use proto::manifest::Progress;
use proto::plan::Plan;
use proto::progress::Phase;
use proto::snapshot::{Header, PARTS, Region, SLOTS, SnapshotLayout};
use xxhash_rust::xxh3::Xxh3;

use crate::engine::Memory;
use crate::progress::ProgressLine;
use crate::ranks::Ranks;
use copying::{Copiers, Copying};
use tiles::{Checksum, Tile, tiles};

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
    memory: Arc<File>,
    layout: SnapshotLayout,
    rank: usize,
    line: ProgressLine,
    /// Whether snapshots are copied while the next step computes.
    is_beside_steps: bool,
    /// Threads of this rank, which may copy meanwhile.
    threads: usize,
    copiers: Copiers,
    begun: Option<Begun>,
}

/// A snapshot that is not whole yet, or not known to be.
struct Begun {
    slot: usize,
    progress: Progress,
    copied: Copied,
}

enum Copied {
    /// It is, with this checksum.
    Whole(u64),
    /// It is on its way.
    UnderWay(Copying),
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
        Self {
            memory: Arc::new(File::from(memory)),
            layout: SnapshotLayout::of(plan),
            rank: ranks.world.rank(),
            line: ranks.line.clone(),
            is_beside_steps: ranks.device.is_asynchronous(),
            threads: plan.threads_per_rank,
            copiers: Copiers::default(),
            begun: None,
        }
    }

    /// Whether a snapshot is finished while the next step computes, rather than at once.
    pub fn are_beside_steps(&self) -> bool {
        self.is_beside_steps
    }

    /// Begins to copy this rank's part of the state after `progress.step`, in place of the older of the two snapshots it has. The
    /// state must stay as it is until [`finish`](Self::finish). The one before has been finished.
    pub fn begin(&mut self, memory: &Memory, progress: Progress) -> Result<(), SnapshotError> {
        assert!(self.begun.is_none(), "two snapshots at a time");
        let mut copied = || {
            let (region, slot) = (self.own(), self.older_slot()?);
            // SNP-1.
            self.memory.write_all_at(&Header::ERASED, region.header(slot))?;
            let tiles = tiles(memory, region, slot);
            let copied = if self.is_beside_steps {
                self.line.enter(Phase::Snapshot);
                Copied::UnderWay(self.copiers.start(memory, tiles, &self.memory, self.threads)?)
            } else {
                Copied::Whole(self.copy(memory, &tiles)?)
            };
            Ok(Begun { slot, progress, copied })
        };
        let begun = copied().map_err(|source| SnapshotError::Io { step: progress.step, what: "written", source })?;
        self.begun = Some(begun);
        Ok(())
    }

    /// Waits until the snapshot that was begun, if there is one, is whole. It counts once it is sealed.
    pub fn finish(&mut self) -> Result<Option<Unsealed<'_>>, SnapshotError> {
        let Some(Begun { slot, progress, copied }) = self.begun.take() else { return Ok(None) };
        let checksum = match copied {
            Copied::Whole(checksum) => Ok(checksum),
            Copied::UnderWay(copying) => {
                self.line.enter(Phase::Snapshot);
                self.copiers.finish(copying)
            }
        };
        match checksum {
            Ok(checksum) => Ok(Some(Unsealed { snapshots: self, slot, header: Header { progress, checksum } })),
            Err(source) => Err(SnapshotError::Io { step: progress.step, what: "written", source }),
        }
    }

    /// Copies tiles, hashing what is in the cache anyway. Returns the checksum.
    fn copy(&self, memory: &Memory, tiles: &[Tile]) -> io::Result<u64> {
        let mut checksum = Checksum::default();
        for Tile { unit, part, range, at } in tiles {
            self.line.enter_unit(Phase::Snapshot, *unit);
            let (mut hash, mut at) = (Xxh3::new(), *at);
            memory.state(*unit, range.clone())[*part].read(CHUNK_NUMEL, |values| {
                let bytes: &[u8] = cast_slice(values);
                hash.update(bytes);
                self.memory.write_all_at(bytes, at)?;
                at += bytes.len() as u64;
                Ok::<(), io::Error>(())
            })?;
            checksum.add(hash.digest());
        }
        Ok(checksum.finish())
    }

    /// This rank's part of the snapshot of `step` holds what was written: where the run stood. A damaged one is taken out
    /// of use.
    pub fn check(&self, step: u64, memory: &Memory) -> Result<Progress, SnapshotError> {
        let region = self.own();
        let checked = || {
            let (slot, header) = self.find(region, step)?;
            let (mut checksum, mut buffer) = (Checksum::default(), vec![0f32; CHUNK_NUMEL]);
            for tile in tiles(memory, region, slot) {
                let mut hash = Xxh3::new();
                self.read(tile.at, tile.numel(), &mut buffer, |_, values| hash.update(cast_slice(values)))?;
                checksum.add(hash.digest());
            }
            if checksum.finish() == header.checksum {
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
