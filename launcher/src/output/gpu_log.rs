//! The GPUs of a job as its user hears of them: warnings, what metrics rows show, the summary, and errors of the driver's.

use std::collections::BTreeMap;

use crate::gpus::judge::{Judge, Summary, Warning};
use crate::gpus::sample::Sample;
use crate::gpus::watch::{Looks, Xid};
use crate::output::units;

/// What has been seen of the job's GPUs.
#[derive(Debug, Default)]
pub struct GpuLog {
    judge: Judge,
    latest: BTreeMap<usize, Sample>,
    /// Since they were last taken.
    xids: Vec<Xid>,
}

impl GpuLog {
    /// Takes what was seen. Returns what the user is to be warned of. `trains`: whether steps are being trained.
    pub fn take(&mut self, looks: Looks, trains: bool) -> Vec<Warning> {
        self.xids.extend(looks.xids);
        let warnings = looks.samples.iter().flat_map(|sample| self.judge.take(sample, trains)).collect();
        self.latest.extend(looks.samples.into_iter().map(|sample| (sample.gpu, sample)));
        warnings
    }

    /// Each GPU as it was seen last.
    pub fn latest(&self) -> Vec<Sample> {
        self.latest.values().cloned().collect()
    }

    /// The errors that the driver has told of since the last call.
    pub fn take_xids(&mut self) -> Vec<Xid> {
        std::mem::take(&mut self.xids)
    }

    /// What each GPU's samples come to, by index.
    pub fn summaries(&self) -> Vec<(usize, Summary)> {
        self.judge.summaries()
    }
}

/// A line of a job's summary.
pub fn summary_line(gpu: usize, summary: &Summary) -> String {
    let Summary { utilization, celsius, watts, memory_used } = summary;
    let facts = [
        utilization.map(|percent| format!("{percent:.0} % busy")),
        watts.map(|watts| format!("{watts:.0} W")),
        celsius.map(|celsius| format!("at most {celsius} C")),
        memory_used.map(|bytes| format!("at most {} in use", units::bytes(bytes))),
    ];
    let facts: Vec<String> = facts.into_iter().flatten().collect();
    format!("GPU {gpu}: {}", if facts.is_empty() { "it tells nothing of itself".to_owned() } else { facts.join(", ") })
}

/// An error of the driver's in words. The numbers are NVIDIA's (docs.nvidia.com/deploy/xid-errors).
pub fn xid(xid: Xid) -> String {
    let Xid { gpu, number } = xid;
    let Some(number) = number else {
        return format!("the driver has told of an error of GPU {gpu} (an Xid without a number)");
    };
    let meaning = match number {
        13 | 31 => ": a program has made a mistake in the GPU's memory",
        48 | 94 | 95 => ": its memory has an error that cannot be corrected",
        63 | 64 => ": rows of its memory are being replaced",
        74 => ": a link to another GPU has failed",
        79 => ": it has fallen off the bus",
        119 | 120 => ": its own processor does not answer",
        _ => "",
    };
    format!("the driver has told of an error of GPU {gpu} (Xid {number}){meaning}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_of_each_gpu_is_shown_and_errors_once() {
        let mut log = GpuLog::default();
        let sample = |gpu, celsius| Sample { gpu, celsius: Some(celsius), ..Sample::default() };
        let xid = Xid { gpu: 1, number: Some(79) };
        let looks = Looks { samples: vec![sample(1, 50), sample(0, 90), sample(1, 60)], xids: vec![xid] };
        let warnings: Vec<String> = log.take(looks, true).iter().map(Warning::to_string).collect();
        assert_eq!(warnings, ["GPU 0 is 90 C hot: above 85 C it is slowed down sooner or later"]);
        assert_eq!(log.latest(), [sample(0, 90), sample(1, 60)]);
        assert_eq!((log.take_xids(), log.take_xids()), (vec![xid], vec![]));
    }

    #[test]
    fn facts_are_told_in_words() {
        let summary =
            Summary { utilization: Some(97.4), celsius: Some(71), watts: Some(640.0), memory_used: Some(8 << 30) };
        assert_eq!(summary_line(0, &summary), "GPU 0: 97 % busy, 640 W, at most 71 C, at most 8.00 GiB in use");
        assert_eq!(summary_line(3, &Summary::default()), "GPU 3: it tells nothing of itself");
        let text = super::xid(Xid { gpu: 2, number: Some(79) });
        assert_eq!(text, "the driver has told of an error of GPU 2 (Xid 79): it has fallen off the bus");
        assert!(super::xid(Xid { gpu: 2, number: None }).contains("without a number"));
    }
}
