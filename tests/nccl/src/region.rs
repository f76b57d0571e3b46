//! The memory that the ranks of a communicator share: counters by which they wait for each other, and room for data on its way.

use std::fs::{File, OpenOptions};
use std::os::fd::IntoRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Most ranks of a communicator.
pub const RANKS_MAX: usize = 16;
/// Bytes of data that go at a time.
pub const CHUNK_BYTES: usize = 1 << 16;
/// Communicators that a file has room for. Nobody touches most of it.
const REGIONS_MAX: u64 = 256;
/// While somebody is waited for.
const PAUSE: Duration = Duration::from_micros(20);

/// The communicator was aborted while it waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aborted;

/// Counters, one for each rank, that only that rank advances.
#[repr(C)]
struct Meeting([AtomicU64; RANKS_MAX]);

/// All zero at first.
#[repr(C)]
struct Head {
    /// Of collectives.
    collectives: Meeting,
    /// Of splits, which may be made meanwhile.
    splits: Meeting,
    /// What each rank says before a meeting.
    said: [[AtomicU64; 4]; RANKS_MAX],
    said_of_splits: [[AtomicU64; 4]; RANKS_MAX],
    /// Of first collectives.
    connections: Meeting,
    /// `[from][to][side]`: whether the sender (0) and the receiver (1) have come to their first message.
    connected: [[[AtomicU64; 2]; RANKS_MAX]; RANKS_MAX],
    /// Of the file's first region: regions that were given away.
    given: AtomicU64,
    /// `[from][to]`: chunks sent, and taken.
    sent: [[AtomicU64; RANKS_MAX]; RANKS_MAX],
    taken: [[AtomicU64; RANKS_MAX]; RANKS_MAX],
    /// Bytes of the message that a chunk belongs to.
    message_bytes: [[AtomicU64; RANKS_MAX]; RANKS_MAX],
}

const HEAD_BYTES: usize = size_of::<Head>().next_multiple_of(4096);
const REGION_BYTES: usize = HEAD_BYTES + (RANKS_MAX + RANKS_MAX * RANKS_MAX) * CHUNK_BYTES;

/// Which of a region's meetings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    Collectives,
    Splits,
    Connections,
}

/// One communicator's memory, as one of its ranks sees it.
pub struct Region {
    name: String,
    map: MmapRaw,
    rank: usize,
    size: usize,
}

impl Region {
    /// Makes a file for communicators that are split from one, and its name in the system. It is there as long as this process.
    pub fn new_name() -> String {
        let fd = memfd_create("emulated-nccl", MFdFlags::MFD_CLOEXEC).expect("the kernel grants memory");
        let file = File::from(fd);
        file.set_len(REGIONS_MAX * REGION_BYTES as u64).expect("nothing of it is there before it is touched");
        format!("/proc/{}/fd/{}", std::process::id(), file.into_raw_fd())
    }

    /// Region `number` of a file.
    pub fn open(name: &str, number: u64, [rank, size]: [usize; 2]) -> Self {
        assert!(size <= RANKS_MAX && rank < size && number < REGIONS_MAX, "rank {rank} of {size} in region {number}");
        let file =
            OpenOptions::new().read(true).write(true).open(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let map = MmapOptions::new().offset(number * REGION_BYTES as u64).len(REGION_BYTES).map_raw(&file);
        Self { name: name.to_owned(), map: map.expect("it can be mapped"), rank, size }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn size(&self) -> usize {
        self.size
    }

    fn head(&self) -> &Head {
        // SAFETY: the map begins with it, at a page; all who touch it do it through atomics.
        unsafe { &*self.map.as_ptr().cast::<Head>() }
    }

    /// Of the first region of a file: the number of one that nobody has.
    pub fn take_number(&self) -> u64 {
        self.head().given.fetch_add(1, SeqCst) + 1
    }

    /// Comes to a meeting, and waits for all the others.
    pub fn meet(&self, of: Of, aborted: &AtomicBool) -> Result<(), Aborted> {
        let meeting = match of {
            Of::Collectives => &self.head().collectives,
            Of::Splits => &self.head().splits,
            Of::Connections => &self.head().connections,
        };
        let number = meeting.0[self.rank].fetch_add(1, SeqCst) + 1;
        wait(aborted, || meeting.0[..self.size].iter().all(|come| come.load(SeqCst) >= number))
    }

    /// Says something to the others, and hears what they say.
    pub fn tell(&self, of: Of, words: [u64; 4], aborted: &AtomicBool) -> Result<Vec<[u64; 4]>, Aborted> {
        let said = match of {
            Of::Collectives => &self.head().said,
            Of::Splits => &self.head().said_of_splits,
            Of::Connections => unreachable!("nobody says anything there"),
        };
        said[self.rank].iter().zip(words).for_each(|(to, word)| to.store(word, SeqCst));
        self.meet(of, aborted)?;
        let heard = said[..self.size].iter().map(|words| words.each_ref().map(|word| word.load(SeqCst))).collect();
        self.meet(of, aborted)?;
        Ok(heard)
    }

    /// Comes to the first message from a rank to another, on one of its sides, and waits for the other side.
    pub fn connect(&self, [from, to]: [usize; 2], aborted: &AtomicBool) -> Result<(), Aborted> {
        let sides = &self.head().connected[from][to];
        let own = usize::from(self.rank == to);
        sides[own].store(1, SeqCst);
        wait(aborted, || sides[1 - own].load(SeqCst) == 1)
    }

    /// Where a rank puts its data of a collective: [`CHUNK_BYTES`].
    pub fn chunk(&self, rank: usize) -> *mut u8 {
        self.at(rank)
    }

    fn at(&self, chunk: usize) -> *mut u8 {
        let at = HEAD_BYTES + chunk * CHUNK_BYTES;
        assert!(at + CHUNK_BYTES <= REGION_BYTES);
        self.map.as_mut_ptr().wrapping_add(at)
    }

    /// Sends `bytes` to a rank; waits until it has taken them.
    ///
    /// # Safety
    /// As many bytes are there.
    pub unsafe fn send(&self, from: *const u8, bytes: usize, to: usize, aborted: &AtomicBool) -> Result<(), Aborted> {
        let (head, me) = (self.head(), self.rank);
        let (sent, taken) = (&head.sent[me][to], &head.taken[me][to]);
        let chunk = self.at(RANKS_MAX + me * RANKS_MAX + to);
        for start in starts(bytes) {
            head.message_bytes[me][to].store(bytes as u64, SeqCst);
            // SAFETY: a chunk's bytes on both sides; the receiver has taken the one before.
            unsafe { from.add(start).copy_to_nonoverlapping(chunk, CHUNK_BYTES.min(bytes - start)) };
            let number = sent.fetch_add(1, SeqCst) + 1;
            wait(aborted, || taken.load(SeqCst) >= number)?;
        }
        Ok(())
    }

    /// Receives `bytes` from a rank.
    ///
    /// # Safety
    /// There is as much room.
    pub unsafe fn recv(&self, to: *mut u8, bytes: usize, from: usize, aborted: &AtomicBool) -> Result<(), Aborted> {
        let (head, me) = (self.head(), self.rank);
        let (sent, taken) = (&head.sent[from][me], &head.taken[from][me]);
        let chunk = self.at(RANKS_MAX + from * RANKS_MAX + me);
        for start in starts(bytes) {
            let before = taken.load(SeqCst);
            wait(aborted, || sent.load(SeqCst) > before)?;
            let theirs = head.message_bytes[from][me].load(SeqCst);
            assert_eq!(theirs, bytes as u64, "rank {me} wants another message than rank {from} sends");
            // SAFETY: a chunk's bytes on both sides.
            unsafe { chunk.copy_to_nonoverlapping(to.add(start), CHUNK_BYTES.min(bytes - start)) };
            taken.fetch_add(1, SeqCst);
        }
        Ok(())
    }
}

/// Where the chunks of so many bytes begin. A message of none is one.
pub fn starts(bytes: usize) -> impl Iterator<Item = usize> {
    (0..bytes.max(1)).step_by(CHUNK_BYTES)
}

fn wait(aborted: &AtomicBool, is_so: impl Fn() -> bool) -> Result<(), Aborted> {
    loop {
        if is_so() {
            return Ok(());
        }
        if aborted.load(SeqCst) {
            return Err(Aborted);
        }
        thread::sleep(PAUSE);
    }
}
