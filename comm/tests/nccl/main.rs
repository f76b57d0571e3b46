//! The binding of NCCL over a library with the same functions whose ranks are threads of this process (`fake.c`), and over the
//! real one as far as it goes without a GPU.

#![allow(unsafe_code, reason = "a library of C, and memory that its calls work on")]

mod world;

use std::ffi::{CString, c_char, c_int, c_long, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use comm::nccl::{Communicator, LoadError, Nccl, NcclError, Patience, Stream, UniqueId, Watchdog};
use comm::{CommError, DType, ReduceOp};
use half::bf16;
use libloading::Library;
use tempfile::TempDir;

/// Longer than any call takes here.
const LONG: Duration = Duration::from_secs(30);

fn no_fault() -> Option<CommError> {
    None
}

const PATIENT: Patience<'_> = Patience { timeout: LONG, fault: &no_fault };

/// A library of its own: nothing that one test sets is seen by another.
struct Fake {
    nccl: &'static Nccl,
    controls: Library,
    _folder: TempDir,
}

impl Fake {
    #[allow(clippy::disallowed_methods, reason = "tests start a compiler")]
    fn path(folder: &Path) -> PathBuf {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nccl/fake.c");
        let path = folder.join("libnccl.so.2");
        let built = Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).args([&path, &source]).output();
        let built = built.expect("a compiler of C");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        path
    }

    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let path = Self::path(folder.path());
        let nccl = Nccl::load(&["/nowhere/libnccl.so.2".into(), path.clone()]).expect("it has all functions");
        // SAFETY: a library without initialisers, which is loaded already.
        let controls = unsafe { Library::new(path) }.expect("it is loaded");
        Self { nccl, controls, _folder: folder }
    }

    fn set(&self, name: &str, value: i32) {
        let name = CString::new(name).expect("no zero byte");
        // SAFETY: the function as `fake.c` declares it.
        unsafe {
            let set = self.controls.get::<unsafe extern "C" fn(*const c_char, c_long)>(b"fake_set").expect("there");
            set(name.as_ptr(), c_long::from(value));
        }
    }

    fn get(&self, name: &str) -> i64 {
        let name = CString::new(name).expect("no zero byte");
        // SAFETY: as above.
        unsafe {
            let get = self.controls.get::<unsafe extern "C" fn(*const c_char) -> c_long>(b"fake_get").expect("there");
            get(name.as_ptr())
        }
    }

    fn id(&self) -> UniqueId {
        self.nccl.unique_id().expect("it makes as many as are wanted")
    }

    /// Runs `rank` for each rank of a communicator, on a thread each.
    fn ranks<T: Send>(&self, size: usize, rank: impl Fn(Communicator) -> T + Sync) -> Vec<T> {
        let (id, rank) = (self.id(), &rank);
        thread::scope(|scope| {
            let enter = |idx| Communicator::enter(self.nccl, id, idx, size, PATIENT).expect("all enter");
            let threads: Vec<_> = (0..size).map(|idx| scope.spawn(move || rank(enter(idx)))).collect();
            threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
        })
    }
}

/// A counter of what is under way, which is what a stream is here.
#[derive(Clone)]
struct Counter(Arc<Mutex<c_int>>);

impl Counter {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(0)))
    }

    fn stream(&self) -> Stream {
        let counter = self.0.lock().expect("nobody panics");
        // SAFETY: the library counts there for as long as this is there, under its own lock.
        unsafe { Stream::new((&raw const *counter).cast_mut().cast::<c_void>()) }
    }

    /// Waits until all is done that was started.
    fn wait(&self, fake: &Fake) {
        let started = Instant::now();
        while self.under_way(fake) > 0 {
            assert!(started.elapsed() < LONG, "it is never done");
            thread::yield_now();
        }
    }

    fn under_way(&self, fake: &Fake) -> c_int {
        let counter = self.0.lock().expect("nobody panics");
        // SAFETY: the function as `fake.c` declares it.
        unsafe {
            let count =
                fake.controls.get::<unsafe extern "C" fn(*const c_int) -> c_int>(b"fake_under_way").expect("there");
            count(&raw const *counter)
        }
    }
}

/// A collective over four ranks, whose values are `first(rank, idx)` before, and what each has then.
fn values_after<T: Copy + Default + Send>(
    fake: &Fake,
    numel: usize,
    first: impl Fn(usize, usize) -> T + Sync,
    call: impl Fn(&Communicator, *mut c_void, Stream) -> Result<(), NcclError> + Sync,
) -> Vec<Vec<T>> {
    fake.ranks(4, |of| {
        let counter = Counter::new();
        let mut values: Vec<T> = (0..numel).map(|idx| first(of.rank(), idx)).collect();
        call(&of, values.as_mut_ptr().cast(), counter.stream()).expect("it is enqueued");
        counter.wait(fake);
        of.leave(PATIENT).expect("all leave");
        values
    })
}

#[test]
fn every_call_does_what_it_says() {
    let fake = Fake::new();
    assert_eq!(fake.nccl.version().to_string(), "2.28.9");
    // Calls that are under way when they return, and calls that are not.
    for polls in [0, 3] {
        fake.set("init_polls", polls);
        fake.set("call_polls", polls);
        let value = |rank: usize, idx: usize| (rank * 10 + idx) as f32;
        let sums = values_after(&fake, 5, value, |of, buf, stream| {
            // SAFETY: as many elements are there until the stream has come to the call's end.
            unsafe { of.all_reduce(buf, 5, DType::F32, ReduceOp::Sum, stream, PATIENT) }
        });
        assert_eq!(sums, vec![vec![60.0, 64.0, 68.0, 72.0, 76.0]; 4]);
        let largest = values_after(
            &fake,
            2,
            |rank, idx| value(3 - rank, idx) as f64,
            |of, buf, stream| {
                // SAFETY: as many elements are there until the stream has come to the call's end.
                unsafe { of.all_reduce(buf, 2, DType::F64, ReduceOp::Max, stream, PATIENT) }
            },
        );
        assert_eq!(largest, vec![vec![30.0, 31.0]; 4]);
        let shards = values_after(&fake, 8, value, |of, buf, stream| {
            // SAFETY: as many elements are there until the stream has come to the call's end.
            unsafe { of.reduce_scatter(buf, 2, DType::F32, ReduceOp::Sum, stream, PATIENT) }
        });
        for (rank, values) in shards.iter().enumerate() {
            let expected = [2 * rank, 2 * rank + 1].map(|idx| (60 + 4 * idx) as f32);
            assert_eq!(values[2 * rank..2 * rank + 2], expected, "rank {rank}");
        }
        let gathered = values_after(
            &fake,
            8,
            |rank, idx| bf16::from_f32(value(rank, idx)),
            |of, buf, stream| {
                // SAFETY: as many elements are there until the stream has come to the call's end.
                unsafe { of.all_gather(buf, 2, DType::BF16, stream, PATIENT) }
            },
        );
        let expected: Vec<bf16> = (0..8).map(|idx| bf16::from_f32(value(idx / 2, idx))).collect();
        assert_eq!(gathered, vec![expected; 4]);
        let told = values_after(&fake, 3, value, |of, buf, stream| {
            // SAFETY: as many elements are there until the stream has come to the call's end.
            unsafe { of.broadcast(buf, 3, DType::F32, 2, stream, PATIENT) }
        });
        assert_eq!(told, vec![vec![20.0, 21.0, 22.0]; 4]);
    }
    assert_eq!((fake.get("aborted"), fake.get("destroyed")), (0, 40));
}

#[test]
fn messages_arrive_in_their_order() {
    let fake = Fake::new();
    let received = fake.ranks(2, |of| {
        let counter = Counter::new();
        let mut values = if of.rank() == 0 { [[1.0f32, 2.0], [3.0, 4.0]] } else { [[0.0; 2]; 2] };
        for value in &mut values {
            let (buf, stream) = (value.as_mut_ptr().cast(), counter.stream());
            // SAFETY: two elements each, until the stream has come to the end.
            let started = unsafe {
                match of.rank() {
                    0 => of.send(buf, 2, DType::F32, 1, stream, PATIENT),
                    _ => of.recv(buf, 2, DType::F32, 0, stream, PATIENT),
                }
            };
            started.expect("it is enqueued");
        }
        counter.wait(&fake);
        values
    });
    assert_eq!(received[1], [[1.0, 2.0], [3.0, 4.0]]);
}

#[test]
fn a_split_gives_each_color_a_communicator_of_its_own() {
    let fake = Fake::new();
    let sums = fake.ranks(4, |of| {
        let rank = of.rank();
        // Even and odd ranks.
        let part = of.split(rank % 2, rank / 2, [rank / 2, 2], PATIENT).expect("all split");
        assert_eq!((part.rank(), part.size()), (rank / 2, 2));
        let counter = Counter::new();
        let mut value = [rank as f32 + 1.0];
        let buf = value.as_mut_ptr().cast();
        // SAFETY: one element, until the stream has come to the end.
        unsafe { part.all_reduce(buf, 1, DType::F32, ReduceOp::Sum, counter.stream(), PATIENT) }.expect("enqueued");
        counter.wait(&fake);
        value[0]
    });
    assert_eq!(sums, [4.0, 6.0, 4.0, 6.0]);
}

#[test]
fn a_split_to_which_a_member_does_not_come_is_given_up() {
    let fake = Fake::new();
    let communicators = fake.ranks(2, |of| of);
    let patience = Patience { timeout: Duration::from_millis(50), fault: &no_fault };
    let error = communicators[0].split(0, 0, [0, 2], patience).unwrap_err();
    assert_eq!(error.to_string(), "ncclCommSplit was not done after 50ms");
    assert_eq!(communicators[0].is_settled("a look"), Err(NcclError::Aborted { call: "a look" }));
    assert_eq!(fake.get("aborted"), 1);
}

#[test]
fn what_nccl_says_is_in_the_error() {
    let fake = Fake::new();
    fake.set("init_code", 1);
    let error = Communicator::enter(fake.nccl, fake.id(), 0, 2, PATIENT).unwrap_err();
    assert_eq!(error.to_string(), "ncclCommInitRankConfig: unhandled cuda error (code 1): no device");
    fake.set("init_code", 0);
    let errors = fake.ranks(1, |of| {
        fake.set("call_code", 4);
        let mut value = [0f32];
        let (buf, counter) = (value.as_mut_ptr().cast(), Counter::new());
        // SAFETY: one element, and nothing is started.
        unsafe { of.all_reduce(buf, 1, DType::F32, ReduceOp::Sum, counter.stream(), PATIENT) }.unwrap_err()
    });
    assert_eq!(errors[0].to_string(), "ncclAllReduce: some error (code 4): a bad argument");
}

#[test]
fn whoever_waits_for_a_rank_that_does_not_come_gives_up() {
    let fake = Fake::new();
    let started = Instant::now();
    let patience = Patience { timeout: Duration::from_millis(50), fault: &no_fault };
    let error = Communicator::enter(fake.nccl, fake.id(), 0, 2, patience).unwrap_err();
    assert_eq!(error.to_string(), "ncclCommInitRankConfig was not done after 50ms");
    // A fault of the job ends the wait long before its time.
    let died = || Some(CommError::Aborted { rank: 1, reason: "enough".into() });
    let error = Communicator::enter(fake.nccl, fake.id(), 0, 2, Patience { timeout: LONG, fault: &died }).unwrap_err();
    assert_eq!(error.to_string(), "rank 1 aborted: enough");
    assert!(started.elapsed() < LONG / 2);
    assert_eq!(fake.get("aborted"), 2, "what was made of them is given up");
}

#[test]
fn a_watchdog_ends_what_waits_for_a_rank_that_has_died() {
    let fake = Fake::new();
    let fault = Arc::new(Mutex::new(None));
    let seen = fault.clone();
    let watchdog = Watchdog::start(move || seen.lock().expect("nobody panics").clone(), |_| ()).expect("a thread");
    let communicators = fake.ranks(2, |of| of);
    communicators.iter().for_each(|of| watchdog.watch(of));
    let (alive, counter, mut value) = (&communicators[0], Counter::new(), [1f32]);
    let buf = value.as_mut_ptr().cast();
    // SAFETY: one element, until nothing is under way any more.
    unsafe { alive.all_reduce(buf, 1, DType::F32, ReduceOp::Sum, counter.stream(), PATIENT) }.expect("it is enqueued");
    assert_eq!((counter.under_way(&fake), watchdog.found()), (1, None), "rank 1 never comes");
    let died = CommError::Aborted { rank: 1, reason: "signal 9".into() };
    *fault.lock().expect("nobody panics") = Some(died.clone());
    counter.wait(&fake);
    let aborted = NcclError::Aborted { call: "ncclAllReduce" };
    // SAFETY: nothing is started.
    let later = unsafe { alive.all_reduce(buf, 1, DType::F32, ReduceOp::Sum, counter.stream(), PATIENT) };
    assert_eq!((later, watchdog.found()), (Err(aborted), Some(died.into())));
    drop(watchdog);
    assert_eq!(fake.get("aborted"), 2);
}

#[test]
fn a_watchdog_sees_what_nccl_notices_and_not_what_was_left_in_good_order() {
    let fake = Fake::new();
    let told = Arc::new(Mutex::new(vec![]));
    let of_thread = told.clone();
    let tell = move |error: &NcclError| of_thread.lock().expect("nobody panics").push(error.to_string());
    let watchdog = Watchdog::start(no_fault, tell).expect("a thread");
    let communicators = fake.ranks(2, |of| {
        watchdog.watch(&of);
        of
    });
    let [left, alive] = [fake.ranks(1, |of| of).remove(0), communicators[0].clone()];
    watchdog.watch(&left);
    left.leave(PATIENT).expect("it leaves");
    assert!(matches!(alive.is_settled("a look"), Ok(true)));
    fake.set("async_error", 6);
    let started = Instant::now();
    while watchdog.found().is_none() {
        assert!(started.elapsed() < LONG);
        thread::yield_now();
    }
    let text = "a call under way: remote process exited or there was a network error (code 6): a peer is gone";
    assert_eq!(watchdog.found().map(|error| error.to_string()).as_deref(), Some(text));
    assert_eq!(told.lock().expect("nobody panics").first().map(String::as_str), Some(text), "before it is aborted");
    assert_eq!(alive.is_settled("a look"), Err(NcclError::Aborted { call: "a look" }));
}

#[test]
fn a_library_of_another_version_is_refused() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let path = Fake::path(folder.path());
    // SAFETY: a library without initialisers.
    let controls = unsafe { Library::new(&path) }.expect("it loads");
    for (number, version) in [(21_705, "2.17.5"), (30_000, "3.0.0")] {
        // SAFETY: the function as `fake.c` declares it.
        unsafe {
            let set = controls.get::<unsafe extern "C" fn(*const c_char, c_long)>(b"fake_set").expect("there");
            set(c"version".as_ptr(), number);
        }
        let error = Nccl::load(std::slice::from_ref(&path)).unwrap_err();
        assert!(matches!(&error, LoadError::Version { .. }), "{error}");
        let text = format!("{} is NCCL {version}, and 2.18 or a later 2 is needed", path.display());
        assert_eq!(error.to_string(), text);
    }
}

/// Up to where a driver is needed.
#[test]
fn the_real_library_makes_ids_and_says_what_it_lacks() {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/lib");
    let pythons = fs::read_dir(&venv).unwrap_or_else(|error| panic!("{}: {error}", venv.display()));
    let names: Vec<PathBuf> = pythons
        .map(|python| python.expect("it can be read").path().join("site-packages/nvidia/nccl/lib/libnccl.so.2"))
        .collect();
    let nccl = Nccl::load(&names).expect("torch brings it");
    let ids = [(); 2].map(|()| nccl.unique_id().expect("it needs no GPU"));
    assert_ne!(ids[0].bytes(), ids[1].bytes());
    if !Path::new("/proc/driver/nvidia/version").exists() {
        let error = Communicator::enter(nccl, ids[0], 0, 1, PATIENT).unwrap_err();
        let NcclError::Failed { call, code, last, .. } = &error else { panic!("{error}") };
        assert_eq!((*call, *code), ("ncclCommInitRankConfig", 1));
        assert!(last.contains("CUDA driver version is insufficient"), "{error}");
    }
}
