//! Interprets `--nproc-per-node`, the number of workers. Pure.

use std::ffi::OsStr;
use std::str::FromStr;

use super::error::RunError;

/// The number of workers that the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumWorkers {
    /// This many, at least one.
    Exactly(usize),
    /// One for each GPU.
    PerGpu,
    /// One for each core.
    PerCore,
    /// One for each GPU where there is one, else one for each core.
    Auto,
}

/// The devices of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Devices {
    /// GPUs that workers see.
    pub gpus: usize,
    /// Cores that this process may use.
    pub cores: usize,
}

impl NumWorkers {
    /// The number on a machine with these devices.
    pub fn count(self, devices: Devices) -> Result<usize, RunError> {
        match (self, devices) {
            (NumWorkers::Exactly(number), _) => Ok(number),
            (NumWorkers::PerGpu, Devices { gpus: 0, .. }) => Err(RunError::NoGpu),
            (NumWorkers::PerGpu | NumWorkers::Auto, Devices { gpus: gpus @ 1.., .. }) => Ok(gpus),
            (NumWorkers::PerCore | NumWorkers::Auto, Devices { cores, .. }) => Ok(cores),
        }
    }
}

impl FromStr for NumWorkers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "gpu" => Ok(NumWorkers::PerGpu),
            "cpu" => Ok(NumWorkers::PerCore),
            "auto" => Ok(NumWorkers::Auto),
            // No machine has more than this to start.
            _ => match text.parse() {
                Ok(number @ 1..=65_536) => Ok(NumWorkers::Exactly(number)),
                _ => Err("expected a number from 1 on, gpu, cpu or auto".to_owned()),
            },
        }
    }
}

/// Counts those of a machine's `gpus` that a program sees under CUDA_VISIBLE_DEVICES, `None` if it is not set.
pub fn visible_gpus(gpus: usize, visible: Option<&OsStr>) -> usize {
    let Some(visible) = visible else { return gpus };
    let visible = visible.to_string_lossy();
    // CUDA stops at the first name that is none.
    visible.split(',').take_while(|name| !matches!(name.trim(), "" | "-1")).count().min(gpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_said_or_counted() {
        let check = |text: &str, gpus: usize, expected: usize| {
            let number: NumWorkers = text.parse().unwrap();
            assert_eq!(number.count(Devices { gpus, cores: 16 }).unwrap(), expected, "{text} with {gpus} GPUs");
        };
        check("3", 8, 3);
        check("gpu", 8, 8);
        check("cpu", 8, 16);
        check("auto", 8, 8);
        check("auto", 0, 16);
        assert!(matches!(NumWorkers::PerGpu.count(Devices { gpus: 0, cores: 16 }), Err(RunError::NoGpu)));
        for wrong in ["", "0", "-1", "1.5", "xpu", "gpus", "99999999"] {
            assert!(wrong.parse::<NumWorkers>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn hidden_gpus_do_not_count() {
        let check = |visible: &str, expected| assert_eq!(visible_gpus(4, Some(OsStr::new(visible))), expected);
        assert_eq!(visible_gpus(4, None), 4);
        check("", 0);
        check("-1", 0);
        check("2", 1);
        check("0,3", 2);
        check("0,-1,2", 1);
        check("GPU-8932f937,MIG-12", 2);
        check("0,1,2,3,4,5", 4);
    }
}
