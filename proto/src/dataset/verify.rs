//! Checking a whole prepared file, at the speed of memory where the file is in it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::blocks::{self, BLOCK_BYTES, HASH_BYTES};
use super::layout::{Flaw, Footer};
use super::reader::inspect;
use super::{DatasetError, DatasetSummary};

/// Read and hashed at a time by one thread: it stays in that core's cache.
const CHUNK_BYTES: u64 = 32 * BLOCK_BYTES;

/// Reads the whole file at `path` in at most `threads` threads, and returns what it holds if every bit is what was written.
pub fn verify(path: &Path, threads: usize) -> Result<DatasetSummary, DatasetError> {
    verified(path, threads).map(|(_, footer)| footer.summary)
}

/// The same file, open, and what stands at its end.
pub(super) fn verified(path: &Path, threads: usize) -> Result<(File, Footer), DatasetError> {
    let failed = |doing| move |source| DatasetError::Io { path: path.to_owned(), doing, source };
    let file = File::open(path).map_err(failed("open"))?;
    let total_bytes = file.metadata().map_err(failed("open"))?.len();
    let read = |start: u64, end: u64| {
        let mut bytes = vec![0; (end - start) as usize];
        file.read_exact_at(&mut bytes, start).map(|()| bytes).map_err(failed("read"))
    };
    let footer = inspect(total_bytes, path, |range| Ok(read(range.start, range.end)?.into()))?;
    let hashes = read(footer.sections.blocks, footer.sections.footer)?;
    let found = check_all(&file, footer.sections.blocks, hashes.as_chunks().0, threads).map_err(failed("read"))?;
    match found {
        None => Ok((file, footer)),
        Some(Flaw { at, what }) => Err(DatasetError::Damaged { path: path.to_owned(), at, what }),
    }
}

/// The first flaw in the first `end` bytes.
fn check_all(file: &File, end: u64, hashes: &[[u8; HASH_BYTES as usize]], threads: usize) -> io::Result<Option<Flaw>> {
    let next = AtomicU64::new(0);
    let work = || -> io::Result<Option<Flaw>> {
        let mut buffer = vec![0; CHUNK_BYTES.min(end) as usize];
        loop {
            let start = next.fetch_add(1, Ordering::Relaxed).saturating_mul(CHUNK_BYTES);
            if start >= end {
                return Ok(None);
            }
            let bytes = &mut buffer[..CHUNK_BYTES.min(end - start) as usize];
            file.read_exact_at(bytes, start)?;
            if let Err(flaw) = blocks::check(bytes, start, hashes) {
                return Ok(Some(flaw));
            }
        }
    };
    thread::scope(|scope| {
        // This thread is one of them. A system that has no more than it does with fewer; a small file needs no other.
        let helpers = threads.min(end.div_ceil(8 * CHUNK_BYTES) as usize).saturating_sub(1);
        let start = |_| thread::Builder::new().name("verify".into()).spawn_scoped(scope, work).ok();
        let helpers: Vec<_> = (0..helpers).filter_map(start).collect();
        let mut found = vec![work()?];
        for helper in helpers {
            found.push(helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        // Chunks are taken in order, and a thread that has found a flaw takes no other: the first one is among these.
        Ok(found.into_iter().flatten().min_by_key(|flaw| flaw.at))
    })
}
