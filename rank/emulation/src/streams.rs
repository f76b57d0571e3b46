//! Streams of the emulated GPU on which ranks exchange: a thread each, which does its work in order and late. What the GPU computes is
//! done on the rank's own thread, to its end: to have that come after a point of a stream is to wait for it.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use comm::nccl::{self, Point, Streams};

/// The most that work waits before it begins, so that streams are late, and each in another way.
const DELAY_MAX: Duration = Duration::from_micros(200);

type Work = unsafe extern "C" fn(*mut c_void);

/// What a library in the place of NCCL is given as a `cudaStream_t`: it sees the first field (`tests/nccl`).
#[repr(C)]
struct Stream {
    enqueue: unsafe extern "C" fn(stream: *const Stream, work: Work, data: *mut c_void),
    jobs: Sender<Job>,
    given: AtomicU64,
    done: Arc<Done>,
}

struct Job(Work, *mut c_void);

// SAFETY: whoever gives it away has nothing to do with it any more.
unsafe impl Send for Job {}

/// How many jobs of a stream are done.
#[derive(Debug, Default)]
struct Done {
    count: Mutex<u64>,
    changed: Condvar,
}

unsafe extern "C" fn enqueue(stream: *const Stream, work: Work, data: *mut c_void) {
    // SAFETY: a stream that was opened below, and stays.
    let stream = unsafe { &*stream };
    stream.given.fetch_add(1, Relaxed);
    stream.jobs.send(Job(work, data)).expect("a stream's thread never ends");
}

/// The streams of the emulated GPU.
pub struct EmulatedStreams;

impl Streams for EmulatedStreams {
    fn open(&self) -> nccl::Stream {
        static OPENED: AtomicU64 = AtomicU64::new(1);
        let (jobs, given) = channel::<Job>();
        let done = Arc::new(Done::default());
        let (of_thread, mut delay) = (done.clone(), OPENED.fetch_add(1, Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        thread::spawn(move || {
            for Job(work, data) in given {
                // Xorshift (Marsaglia, 2003), as times.
                delay ^= delay << 13;
                delay ^= delay >> 7;
                delay ^= delay << 17;
                thread::sleep(DELAY_MAX.mul_f64((delay >> 11) as f64 / (1u64 << 53) as f64));
                // SAFETY: whoever gave it vouches for it, and it is done once.
                unsafe { work(data) };
                *of_thread.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                of_thread.changed.notify_all();
            }
        });
        let stream = Box::leak(Box::new(Stream { enqueue, jobs, given: AtomicU64::new(0), done }));
        // SAFETY: it stays until the process ends.
        unsafe { nccl::Stream::new((&raw mut *stream).cast()) }
    }

    /// What the GPU computes is done.
    fn follow(&self, _stream: nccl::Stream) {}

    fn point(&self, stream: nccl::Stream) -> Arc<dyn Point> {
        // SAFETY: a stream that was opened above, and stays.
        let stream = unsafe { &*stream.as_ptr().cast::<Stream>() };
        Arc::new(EmulatedPoint { done: stream.done.clone(), number: stream.given.load(Relaxed) })
    }
}

/// After the first jobs of a stream.
#[derive(Debug)]
struct EmulatedPoint {
    done: Arc<Done>,
    number: u64,
}

impl Point for EmulatedPoint {
    fn is_reached(&self) -> bool {
        *self.done.count.lock().unwrap_or_else(PoisonError::into_inner) >= self.number
    }

    fn precede(&self) {
        let count = self.done.count.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.done.changed.wait_while(count, |count| *count < self.number);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }
}
