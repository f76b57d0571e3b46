//! Faults on purpose: the language of `DSLAUNCH_FAULT`, which breaks ranks so that anybody can see how a job recovers.
//! Pure: it parses; ranks act.
//!
//! ```text
//! DSLAUNCH_FAULT="kill rank=1 phase=backward step=3"
//! DSLAUNCH_FAULT="exit=7 phase=load; slow=50 rank=0 phase=forward"
//! ```
//!
//! What is not said fits every rank, phase, step and unit; an attempt that is not said is the first.

use std::fmt;
use std::str::FromStr;

use crate::progress::{Phase, Place};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// SIGKILL.
    Kill,
    /// SIGSEGV.
    Segv,
    /// SIGABRT.
    Abort,
    /// SIGSTOP: it stands still until somebody continues or kills it.
    Stop,
    /// SIGTERM, which ranks ignore.
    Term,
    /// A panic.
    Panic,
    /// It exits with this code.
    Exit(i32),
    /// It asks for more memory than there is.
    Memory,
    /// It sleeps for ever.
    Hang,
    /// It computes for ever.
    Spin,
    /// It enters its next exchange with other ranks, and never comes to them.
    HangInside,
    /// SIGKILL in its next exchange with other ranks, to which it has come.
    KillInside,
    /// It takes so many milliseconds longer, each time.
    Slow(u64),
    /// Its connections to the launcher break.
    Disconnect,
    /// It kills the launcher.
    KillLauncher,
    /// It kills the launcher's guardian.
    KillGuardian,
}

impl FaultKind {
    /// Words for the kinds that need no number.
    const WORDS: [(&'static str, FaultKind); 14] = [
        ("kill", FaultKind::Kill),
        ("segv", FaultKind::Segv),
        ("abort", FaultKind::Abort),
        ("stop", FaultKind::Stop),
        ("term", FaultKind::Term),
        ("panic", FaultKind::Panic),
        ("memory", FaultKind::Memory),
        ("hang", FaultKind::Hang),
        ("spin", FaultKind::Spin),
        ("hang-inside", FaultKind::HangInside),
        ("kill-inside", FaultKind::KillInside),
        ("disconnect", FaultKind::Disconnect),
        ("kill-launcher", FaultKind::KillLauncher),
        ("kill-guardian", FaultKind::KillGuardian),
    ];

    fn parse(word: &str) -> Option<Self> {
        if let Some((_, kind)) = Self::WORDS.iter().find(|(name, _)| *name == word) {
            return Some(*kind);
        }
        match word.split_once('=')? {
            ("exit", code) => code.parse().ok().map(Self::Exit),
            ("slow", ms) => ms.parse().ok().map(Self::Slow),
            _ => None,
        }
    }
}

/// One fault: what happens, to whom and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The kind of fault.
    pub kind: FaultKind,
    rank: Option<usize>,
    phase: Option<Phase>,
    step: Option<u64>,
    unit: Option<usize>,
    attempt: u32,
}

/// `DSLAUNCH_FAULT` holds something that is no fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultError {
    word: String,
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<_> = FaultKind::WORDS.iter().map(|(word, _)| *word).collect();
        let phases: Vec<_> = Phase::ALL.iter().map(|phase| phase.word()).collect();
        let (kinds, phases) = (kinds.join(", "), phases.join(", "));
        write!(
            f,
            "{:?} is no part of a fault: KIND [rank=N] [phase=PHASE] [step=N] [unit=N] [attempt=N], where KIND is {kinds}, \
             exit=CODE or slow=MILLISECONDS and PHASE is {phases}; several are separated by semicolons",
            self.word
        )
    }
}

impl Fault {
    /// All faults of a text.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, FaultError> {
        text.split(';').filter(|fault| !fault.trim().is_empty()).map(str::parse).collect()
    }

    /// Whether it strikes `rank` in this attempt at all.
    pub fn is_for(&self, rank: usize, attempt: u32) -> bool {
        self.rank.is_none_or(|named| named == rank) && self.attempt == attempt
    }

    /// Whether it strikes when a rank that it is for comes to `place`.
    pub fn is_at(&self, place: Place) -> bool {
        self.phase.is_none_or(|phase| phase == place.phase)
            && self.step.is_none_or(|step| step == place.step)
            && (self.unit.is_none() || self.unit == place.unit)
    }
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let wrong = |word: &str| FaultError { word: word.to_owned() };
        let mut words = text.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let kind = FaultKind::parse(kind).ok_or_else(|| wrong(kind))?;
        let mut fault = Self { kind, rank: None, phase: None, step: None, unit: None, attempt: 0 };
        for word in words {
            let (key, value) = word.split_once('=').ok_or_else(|| wrong(word))?;
            let number = || value.parse::<u64>().map_err(|_| wrong(word));
            match key {
                "rank" => fault.rank = Some(number()? as usize),
                "step" => fault.step = Some(number()?),
                "unit" => fault.unit = Some(number()? as usize),
                "attempt" => fault.attempt = u32::try_from(number()?).map_err(|_| wrong(word))?,
                "phase" => {
                    let named = Phase::ALL.into_iter().find(|phase| phase.word() == value);
                    fault.phase = Some(named.ok_or_else(|| wrong(word))?);
                }
                _ => return Err(wrong(word)),
            }
        }
        Ok(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(phase: Phase, step: u64, unit: Option<usize>) -> Place {
        Place { step, phase, unit }
    }

    #[test]
    fn a_fault_strikes_where_it_says() {
        let faults = Fault::parse_all("kill rank=1 phase=backward step=3; exit=7 attempt=2;slow=50 unit=4;").unwrap();
        let [kill, exit, slow] = faults[..] else { panic!("{faults:?}") };
        assert_eq!((kill.kind, exit.kind, slow.kind), (FaultKind::Kill, FaultKind::Exit(7), FaultKind::Slow(50)));
        assert!(kill.is_for(1, 0) && !kill.is_for(0, 0) && !kill.is_for(1, 1));
        assert!(exit.is_for(5, 2) && !exit.is_for(5, 0), "the first attempt unless it says otherwise");
        assert!(kill.is_at(at(Phase::Backward, 3, Some(2))) && !kill.is_at(at(Phase::Backward, 2, Some(2))));
        assert!(!kill.is_at(at(Phase::Forward, 3, None)) && exit.is_at(at(Phase::Load, 0, None)));
        assert!(slow.is_at(at(Phase::Forward, 1, Some(4))) && !slow.is_at(at(Phase::Forward, 1, None)));
        assert_eq!(Fault::parse_all("  "), Ok(vec![]));
    }

    #[test]
    fn every_kind_and_phase_has_its_word() {
        for (word, kind) in FaultKind::WORDS {
            assert_eq!(word.parse::<Fault>().unwrap().kind, kind);
        }
        for phase in Phase::ALL {
            let fault: Fault = format!("kill phase={}", phase.word()).parse().unwrap();
            assert!(Phase::ALL.into_iter().all(|other| fault.is_at(at(other, 1, None)) == (other == phase)));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("kil", "kil"),
            ("exit=x", "exit=x"),
            ("kill rank", "rank"),
            ("kill rank=-1", "rank=-1"),
            ("kill phase=backwards", "phase=backwards"),
            ("kill stap=3", "stap=3"),
        ] {
            let error = Fault::parse_all(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{word:?} is no part of a fault")), "{error}");
        }
    }
}
