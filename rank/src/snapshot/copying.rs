//! Copies a rank's part of a snapshot while the next step computes: nothing of the optimizer's state changes before the next
//! update. Threads of its own fetch tiles from the GPU, hash them and write them.

#![allow(unsafe_code, reason = "threads read memory by its address")]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use half::bf16;
use tch::Kind;

use super::tiles::{Checksum, TILE_NUMEL, Tile, hash};
use crate::device::cuda::gpu::{self, Copier};
use crate::device::widened;
use crate::engine::Memory;

/// Threads that copy at a time, with 16 MiB of pinned memory each.
const THREADS_MAX: usize = 8;

/// Where one tile is.
struct Source {
    tile: Tile,
    /// Address of its first element.
    address: usize,
    /// In the GPU's memory: else in the host's, where offloaded state is.
    is_on_gpu: bool,
    /// Its elements are bf16, and are written in fp32: else they are that.
    is_bf16: bool,
}

/// What fetches tiles. Kept from one snapshot to the next.
#[derive(Default)]
pub(super) struct Copiers(Vec<Box<dyn Copier>>);

/// A copy under way. Dropped, it is waited for: until then the state must stay as it is.
pub(super) struct Copying {
    threads: Vec<JoinHandle<Copied>>,
    num_tiles: usize,
}

/// What a thread has done: the hash of each tile that it took.
type Copied = (Box<dyn Copier>, io::Result<Vec<(usize, u64)>>);

impl Drop for Copying {
    fn drop(&mut self) {
        for thread in self.threads.drain(..) {
            // Nobody asks any more how it went.
            let _ = thread.join();
        }
    }
}

impl Copiers {
    /// Starts to copy `tiles` as they are once all that this thread has started is done. `threads`: that this rank computes with.
    ///
    /// # Errors
    /// There is no pinned memory.
    pub fn start(&mut self, memory: &Memory, tiles: Vec<Tile>, to: &Arc<File>, threads: usize) -> io::Result<Copying> {
        let sources: Arc<Vec<Source>> = Arc::new(tiles.into_iter().map(|tile| source(memory, tile)).collect());
        while self.0.len() < threads.clamp(1, THREADS_MAX) {
            self.0.push(gpu::copier(TILE_NUMEL * size_of::<f32>())?);
        }
        let next = Arc::new(AtomicUsize::new(0));
        let mut copying = Copying { threads: vec![], num_tiles: sources.len() };
        for mut copier in self.0.drain(..) {
            copier.follow()?;
            let (sources, next, to) = (sources.clone(), next.clone(), to.clone());
            let work = move || {
                let hashes = copy(&mut *copier, &sources, &next, &to);
                (copier, hashes)
            };
            copying.threads.push(thread::Builder::new().name("snapshot".into()).spawn(work)?);
        }
        Ok(copying)
    }

    /// Waits until all is copied. Returns the checksum.
    ///
    /// # Errors
    /// A tile could not be fetched or written.
    pub fn finish(&mut self, mut copying: Copying) -> io::Result<u64> {
        let mut hashes = vec![0; copying.num_tiles];
        let mut failed = None;
        for thread in copying.threads.drain(..) {
            let (copier, found) = thread.join().map_err(|_| io::Error::other("a thread that copies has panicked"))?;
            self.0.push(copier);
            match found {
                Ok(found) => found.into_iter().for_each(|(tile, hash)| hashes[tile] = hash),
                Err(error) => failed = Some(error),
            }
        }
        let mut checksum = Checksum::default();
        hashes.into_iter().for_each(|hash| checksum.add(hash));
        failed.map_or(Ok(checksum.finish()), Err)
    }
}

fn source(memory: &Memory, tile: Tile) -> Source {
    let section = memory.state(tile.unit, tile.range.clone())[tile.part].tensor();
    let is_bf16 = section.kind() == Kind::BFloat16;
    Source { address: section.data_ptr().expose_provenance(), is_on_gpu: gpu::holds(section.device()), is_bf16, tile }
}

/// Copies tiles that no other thread has taken. Returns the hash of each.
fn copy(copier: &mut dyn Copier, sources: &[Source], next: &AtomicUsize, to: &File) -> io::Result<Vec<(usize, u64)>> {
    let mut hashes = vec![];
    loop {
        let idx = next.fetch_add(1, Relaxed);
        let Some(Source { tile, address, is_on_gpu, is_bf16 }) = sources.get(idx) else { return Ok(hashes) };
        let from = std::ptr::with_exposed_provenance::<c_void>(*address);
        let bytes = tile.numel() * if *is_bf16 { size_of::<bf16>() } else { size_of::<f32>() };
        // SAFETY: a tile of the optimizer's state, which `Copying` outlives and nobody changes before it is finished.
        let values = unsafe {
            if *is_on_gpu { copier.copy(from, bytes)? } else { std::slice::from_raw_parts(from.cast::<u8>(), bytes) }
        };
        let wide;
        let values = if *is_bf16 {
            wide = widened(bytemuck::cast_slice(values));
            bytemuck::cast_slice(&wide)
        } else {
            values
        };
        hashes.push((idx, hash(values)));
        to.write_all_at(values, tile.at)?;
    }
}
