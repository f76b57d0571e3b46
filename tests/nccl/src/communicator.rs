//! A rank's end of a communicator.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use crate::Comm;
use crate::region::{Aborted, Of, Region};
use crate::transfer::{Call, Kind};

/// Between two looks whether calls are done.
const PAUSE: Duration = Duration::from_micros(50);

/// One end.
#[derive(Default)]
pub struct Communicator {
    /// Once all ranks have entered.
    region: OnceLock<Region>,
    aborted: AtomicBool,
    /// Threads that make, split or finalize it.
    busy: AtomicUsize,
    /// Calls that streams have not made yet.
    under_way: AtomicUsize,
    /// What is connected: all for collectives (`None`), and the sender and receiver of messages.
    connected: Mutex<HashSet<Option<[usize; 2]>>>,
}

/// The caller's, to be written once it is made.
struct Made(*mut Comm);

// SAFETY: the caller keeps it until the split is done.
unsafe impl Send for Made {}

impl Communicator {
    /// Enters by name, on a thread of its own: it is busy until all have.
    pub fn enter(name: String, rank: usize, size: usize) -> Arc<Self> {
        let made = Arc::new(Self::default());
        made.clone().on_a_thread(move |made| {
            let region = Region::open(&name, 0, [rank, size]);
            region.meet(Of::Splits, &made.aborted)?;
            assert!(made.region.set(region).is_ok(), "it is entered once");
            Ok(())
        });
        made
    }

    fn on_a_thread(self: Arc<Self>, work: impl FnOnce(&Self) -> Result<(), Aborted> + Send + 'static) {
        self.busy.fetch_add(1, SeqCst);
        thread::spawn(move || {
            // One that is aborted stays as it is.
            let _ = work(&self);
            self.busy.fetch_sub(1, SeqCst);
        });
    }

    fn region(&self) -> &Region {
        self.region.get().expect("it is used once all have entered")
    }

    /// Whether a thread still works on it.
    pub fn is_busy(&self) -> bool {
        self.busy.load(SeqCst) > 0
    }

    /// Makes a smaller one of the ranks that give the same color, in the order of their keys.
    pub fn split(self: Arc<Self>, [color, key]: [u64; 2], new: *mut Comm) {
        let new = Made(new);
        self.on_a_thread(move |whole| {
            let new = new;
            let (region, aborted) = (whole.region(), &whole.aborted);
            let told = region.tell(Of::Splits, [color, key, 0, 0], aborted)?;
            let mut members: Vec<usize> = (0..told.len()).filter(|&rank| told[rank][0] == color).collect();
            members.sort_by_key(|&rank| (told[rank][1], rank));
            let leads = members[0] == region.rank();
            let number = if leads { Region::open(region.name(), 0, [0, 1]).take_number() } else { 0 };
            let number = region.tell(Of::Splits, [number, 0, 0, 0], aborted)?[members[0]][0];
            let rank = members.iter().position(|&rank| rank == region.rank()).expect("it is one of them");
            let part = Self::default();
            let opened = Region::open(region.name(), number, [rank, members.len()]);
            assert!(part.region.set(opened).is_ok(), "it is new");
            // SAFETY: the caller's, which is there until the split is done.
            unsafe { *new.0 = Arc::into_raw(Arc::new(part)) };
            Ok(())
        });
    }

    /// Whoever makes the first call of its kind, or the first message between two ranks, waits on the host until the others have come to
    /// theirs: busy until then.
    fn connect(self: Arc<Self>, call: &Call) {
        let rank = self.region().rank();
        let what = match call.kind {
            Kind::Send => Some([rank, call.peer]),
            Kind::Recv => Some([call.peer, rank]),
            _ => None,
        };
        if self.connected.lock().expect("nobody panics").insert(what) {
            self.on_a_thread(move |of| match what {
                Some(sides) => of.region().connect(sides, &of.aborted),
                None => of.region().meet(Of::Connections, &of.aborted),
            });
        }
    }

    /// A call, for a stream to make. May leave the communicator busy.
    pub fn job(self: Arc<Self>, call: Call) -> Box<dyn FnOnce() + Send> {
        assert!(!self.is_busy(), "a call while another is in progress: {call:?}");
        self.clone().connect(&call);
        self.under_way.fetch_add(1, SeqCst);
        Box::new(move || {
            let call = call;
            if !self.aborted.load(SeqCst) {
                // One that is aborted leaves anything.
                // SAFETY: the caller of NCCL keeps the memory until the stream has come here.
                let _ = unsafe { call.run(self.region(), &self.aborted) };
            }
            self.under_way.fetch_sub(1, SeqCst);
        })
    }

    /// Is busy until all calls are made.
    pub fn finalize(self: Arc<Self>) {
        self.on_a_thread(|whole| {
            while whole.under_way.load(SeqCst) > 0 && !whole.aborted.load(SeqCst) {
                thread::sleep(PAUSE);
            }
            Ok(())
        });
    }

    /// Ends what waits for others.
    pub fn abort(&self) {
        self.aborted.store(true, SeqCst);
    }
}
