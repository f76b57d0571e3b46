//! Decides whether a rank died for lack of memory. Pure, but for the look at the kernel's counter.

use std::fmt;
use std::fs;

use nix::sys::signal::Signal;

use crate::supervise::Failure;

/// The messages of allocators that have no memory: libtorch's, Rust's, the C library's.
const SIGNS: [&str; 4] = ["can't allocate memory", "memory allocation of", "Cannot allocate memory", "std::bad_alloc"];

/// How many processes the kernel has killed for lack of memory since it started; 0 where it does not say.
pub fn kernel_kills() -> u64 {
    kills_in(&fs::read_to_string("/proc/vmstat").unwrap_or_default())
}

fn kills_in(vmstat: &str) -> u64 {
    vmstat.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

/// How a rank ran out of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutOfMemory {
    /// The kernel killed it; others on the machine may have taken the memory.
    Killed,
    /// It was refused memory that it asked for, in these words. It would ask for as much again.
    Refused(String),
}

/// What CUDA, its libraries and libtorch say of a GPU's.
const SIGNS_OF_GPU: [&str; 5] = [
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
];

impl OutOfMemory {
    /// Whether it was a GPU's memory, not the host's.
    pub fn is_of_gpu(&self) -> bool {
        matches!(self, Self::Refused(words) if SIGNS_OF_GPU.iter().any(|sign| words.contains(sign)))
    }
}

/// Whether a failure shows that there was no memory. `tail`: the last lines of the rank's standard error; `kernel_kills`: how
/// many processes the kernel has killed for lack of memory during the attempt.
pub fn recognise(cause: &Failure, tail: &[String], kernel_kills: u64) -> Option<OutOfMemory> {
    let was_killed = cause.exit.is_some_and(|exit| exit.is_signal(Signal::SIGKILL)) && cause.message.is_none();
    if was_killed && kernel_kills > 0 {
        return Some(OutOfMemory::Killed);
    }
    let told = cause.message.iter().flat_map(|message| message.lines());
    let sign = told.chain(tail.iter().map(String::as_str)).find_map(sentence_with_sign);
    sign.map(|sign| OutOfMemory::Refused(sign.to_owned()))
}

/// The sentence of `line` that speaks of memory: a panic's message quotes all of libtorch's, with addresses that differ
/// from run to run.
fn sentence_with_sign(line: &str) -> Option<&str> {
    let sign = SIGNS.iter().chain(&SIGNS_OF_GPU).find_map(|sign| line.find(sign))?;
    let start = [". ", "\""].iter().filter_map(|end| Some(line[..sign].rfind(end)? + end.len())).max().unwrap_or(0);
    let end = [". ", "\\n", "\""].iter().filter_map(|end| Some(sign + line[sign..].find(end)?)).min();
    Some(line[start..end.unwrap_or(line.len())].trim().trim_end_matches('.'))
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OutOfMemory::Killed => {
                f.write_str("the kernel killed it, because the machine or its control group had no memory left")
            }
            OutOfMemory::Refused(words) => f.write_str(words),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::exit::Exit;
    use crate::supervise::Kind;

    fn died(exit: Exit, message: Option<&str>) -> Failure {
        Failure { rank: 0, kind: Kind::Died, step: 3, message: message.map(str::to_owned), exit: Some(exit) }
    }

    #[test]
    fn the_kernel_counts() {
        assert_eq!(kills_in("pgfault 12\noom_kill 3\noom_killed 9\n"), 3);
        assert_eq!(kills_in(""), 0);
    }

    #[test]
    fn a_kill_is_the_kernels_only_if_it_says_so() {
        let killed = died(Exit::Signal { number: libc::SIGKILL, core_dumped: false }, None);
        assert_eq!(recognise(&killed, &[], 1), Some(OutOfMemory::Killed));
        assert_eq!(recognise(&killed, &[], 0), None);
        assert_eq!(recognise(&died(Exit::Code(1), None), &[], 1), None);
    }

    #[test]
    fn allocators_last_words_are_known() {
        let check = |exit: Exit, message: Option<&str>, tail: &[&str], words: Option<&str>| {
            let tail: Vec<String> = tail.iter().map(|&line| line.to_owned()).collect();
            let expected = words.map(|words| OutOfMemory::Refused(words.to_owned()));
            assert_eq!(recognise(&died(exit, message), &tail, 0), expected);
        };
        let line = r#"called `Result::unwrap()` on an `Err` value: Torch("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12 (Cannot allocate memory)\nframe #0: c10 + 0x6a""#;
        let words = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes";
        check(Exit::Code(101), None, &["thread 'main' panicked", line], Some(words));
        let aborted = Exit::Signal { number: libc::SIGABRT, core_dumped: false };
        check(aborted, None, &["memory allocation of 8 bytes failed"], Some("memory allocation of 8 bytes failed"));
        let words = "Cannot allocate memory (os error 12)";
        check(Exit::Code(1), Some("cannot map\nCannot allocate memory (os error 12)"), &[], Some(words));
        check(Exit::Code(1), Some("boom"), &["bang"], None);
        let line = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139.72 GiB";
        let words = "CUDA out of memory";
        check(Exit::Code(101), None, &[line], Some(words));
        let line = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`";
        check(Exit::Code(101), None, &[line], Some(line));
        assert!(OutOfMemory::Refused(words.into()).is_of_gpu() && !OutOfMemory::Killed.is_of_gpu());
    }
}
