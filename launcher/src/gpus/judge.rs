//! Which samples of GPUs a user has to hear of, and what they come to. Pure.
//!
//! - GPU-1 A GPU is warned of once for each reason in a job: hotter than 85 C, slowed down by heat or by its hardware, less
//!   busy than 85 % over a minute of training, errors of its memory that were not corrected.
//! - GPU-2 What a GPU does not tell is never judged.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt;

use super::sample::{Sample, Throttle};

/// Hotter is worth a warning.
const HOT_CELSIUS: u32 = 85;
/// Less busy is worth a warning.
const BUSY_PERCENT: u32 = 85;
/// Samples over which a GPU is to be busy: a minute's.
const WINDOW: usize = 60;

/// Something about a GPU that its user should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The GPU's index.
    pub gpu: usize,
    /// What it is.
    pub about: About,
}

/// What is wrong with a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// It is so hot.
    Hot(u32),
    /// It is slowed down.
    Throttled(Throttle),
    /// It was so busy over the window, in percent.
    Idle(u32),
    /// So many errors of its memory were not corrected since the job began.
    MemoryErrors(u64),
}

/// What the samples of one GPU come to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Mean utilisation while training, in percent.
    pub utilization: Option<f64>,
    /// The highest temperature.
    pub celsius: Option<u32>,
    /// Mean power while training.
    pub watts: Option<f64>,
    /// The most memory in use.
    pub memory_used: Option<u64>,
}

/// Takes samples.
#[derive(Debug, Default)]
pub struct Judge {
    gpus: BTreeMap<usize, Seen>,
    warned: HashSet<(usize, Reason)>,
}

/// What has been seen of one GPU.
#[derive(Debug, Default)]
struct Seen {
    window: VecDeque<u32>,
    utilization: Mean,
    watts: Mean,
    celsius: Option<u32>,
    memory_used: Option<u64>,
    /// Errors when the job began.
    first_errors: Option<u64>,
}

#[derive(Debug, Default)]
struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    fn add(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            self.sum += value;
            self.count += 1;
        }
    }

    fn get(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reason {
    Hot,
    Throttled(Throttle),
    Idle,
    MemoryErrors,
}

impl Judge {
    /// Takes one sample. `trains`: whether steps are being trained, which is when a GPU is to be busy.
    pub fn take(&mut self, sample: &Sample, trains: bool) -> Vec<Warning> {
        let seen = self.gpus.entry(sample.gpu).or_default();
        let mut found = seen.take(sample, trains);
        found.retain(|(reason, _)| self.warned.insert((sample.gpu, *reason)));
        found.into_iter().map(|(_, about)| Warning { gpu: sample.gpu, about }).collect()
    }

    /// What each GPU's samples come to, by index.
    pub fn summaries(&self) -> Vec<(usize, Summary)> {
        let summary = |seen: &Seen| Summary {
            utilization: seen.utilization.get(),
            celsius: seen.celsius,
            watts: seen.watts.get(),
            memory_used: seen.memory_used,
        };
        self.gpus.iter().map(|(&gpu, seen)| (gpu, summary(seen))).collect()
    }
}

impl Seen {
    fn take(&mut self, sample: &Sample, trains: bool) -> Vec<(Reason, About)> {
        let mut found = vec![];
        self.celsius = self.celsius.max(sample.celsius);
        self.memory_used = self.memory_used.max(sample.memory_used);
        if let Some(celsius) = sample.celsius.filter(|&celsius| celsius > HOT_CELSIUS) {
            found.push((Reason::Hot, About::Hot(celsius)));
        }
        for &throttle in sample.throttled.iter().filter(|&&throttle| throttle != Throttle::PowerCap) {
            found.push((Reason::Throttled(throttle), About::Throttled(throttle)));
        }
        if let Some(errors) = sample.ecc_errors {
            let first = *self.first_errors.get_or_insert(errors);
            if errors > first {
                found.push((Reason::MemoryErrors, About::MemoryErrors(errors - first)));
            }
        }
        if !trains {
            self.window.clear();
            return found;
        }
        self.watts.add(sample.watts);
        self.utilization.add(sample.utilization.map(f64::from));
        if let Some(utilization) = sample.utilization {
            self.window.push_back(utilization);
            if self.window.len() > WINDOW {
                self.window.pop_front();
            }
            let mean = self.window.iter().sum::<u32>() / self.window.len() as u32;
            if self.window.len() == WINDOW && mean < BUSY_PERCENT {
                found.push((Reason::Idle, About::Idle(mean)));
            }
        }
        found
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU {} ", self.gpu)?;
        match self.about {
            About::Hot(celsius) => {
                write!(f, "is {celsius} C hot: above {HOT_CELSIUS} C it is slowed down sooner or later")
            }
            About::Throttled(Throttle::Thermal) => f.write_str("is slowed down by heat: look after its cooling"),
            About::Throttled(_) => {
                f.write_str("is slowed down by its hardware: look after its power supply and cooling")
            }
            About::Idle(percent) => write!(
                f,
                "was busy for {percent} % of the last minute: a larger train.micro_batch_size may keep it busy"
            ),
            About::MemoryErrors(errors) => {
                write!(f, "has {errors} uncorrected memory errors since the job began: its results cannot be trusted")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> Sample {
        Sample {
            gpu: 1,
            utilization: Some(99),
            memory_used: Some(7),
            celsius: Some(60),
            watts: Some(500.0),
            sm_megahertz: Some(1980),
            throttled: vec![Throttle::PowerCap],
            ecc_errors: Some(3),
        }
    }

    fn all(samples: impl IntoIterator<Item = (Sample, bool)>) -> (Judge, Vec<About>) {
        let mut judge = Judge::default();
        let taken = samples.into_iter().flat_map(|(sample, trains)| judge.take(&sample, trains));
        let warnings = taken.map(|warning| warning.about).collect();
        (judge, warnings)
    }

    #[test]
    fn a_gpu_that_works_is_not_spoken_of() {
        let (_, warnings) = all((0..200).map(|_| (fine(), true)));
        assert_eq!(warnings, []);
        let silent = Sample { gpu: 0, ..Sample::default() };
        assert_eq!(all((0..200).map(|_| (silent.clone(), true))).1, [], "GPU-2");
    }

    #[test]
    fn each_reason_is_told_once() {
        let hot = Sample { celsius: Some(86), throttled: vec![Throttle::Thermal, Throttle::Hardware], ..fine() };
        let (_, warnings) = all([fine(), hot.clone(), fine(), hot].map(|sample| (sample, true)));
        let expected = [About::Hot(86), About::Throttled(Throttle::Thermal), About::Throttled(Throttle::Hardware)];
        assert_eq!(warnings, expected);
    }

    #[test]
    fn only_new_memory_errors_count() {
        let (_, warnings) = all([3, 3, 5, 6].map(|errors| (Sample { ecc_errors: Some(errors), ..fine() }, true)));
        assert_eq!(warnings, [About::MemoryErrors(2)]);
    }

    #[test]
    fn a_minute_of_training_is_to_be_busy() {
        let at = |percent| Sample { utilization: Some(percent), ..fine() };
        let minute = |percent, trains| (0..WINDOW).map(move |_| (at(percent), trains));
        assert_eq!(all(minute(84, true)).1, [About::Idle(84)]);
        assert_eq!(all(minute(85, true)).1, []);
        assert_eq!(all(minute(10, false)).1, [], "it loads");
        assert_eq!(all(minute(10, true).take(WINDOW - 1)).1, []);
        // A pause in training begins the minute anew.
        let paused = minute(10, true).take(40).chain([(at(0), false)]).chain(minute(10, true).take(40));
        assert_eq!(all(paused).1, []);
    }

    #[test]
    fn the_summary_is_of_training() {
        let busy =
            Sample { utilization: Some(80), watts: Some(700.0), celsius: Some(70), memory_used: Some(9), ..fine() };
        let loading = Sample { utilization: Some(0), watts: Some(90.0), ..fine() };
        let (judge, _) = all([(loading, false), (fine(), true), (busy, true)]);
        let expected = Summary { utilization: Some(89.5), celsius: Some(70), watts: Some(600.0), memory_used: Some(9) };
        assert_eq!(judge.summaries(), [(1, expected)]);
    }
}
