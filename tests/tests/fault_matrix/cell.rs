//! One cell of the matrix: a fault, its phase, its victim, and the expected end of the job. Pure.

use std::fmt;

/// The kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// As DSLAUNCH_FAULT has it.
    pub word: &'static str,
    /// The expected end of the job.
    pub ending: Ending,
    /// The words about the cause that the report must contain.
    pub cause: &'static str,
    /// When it can happen.
    pub phases: &'static [Phase],
}

/// The expected end of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The fault is put down to its victim, ranks are started again, and the result is that of a quiet run.
    Recovers,
    /// Nothing happens.
    Unharmed,
    /// The job ends with 3, and the report names the victim: no restart would help.
    GivesUp,
    /// dslaunch is gone, and nothing that it has started is left. Started again, the job gives the result of a quiet run.
    LauncherGone,
}

/// When it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The rank's program has just begun.
    Spawn,
    /// It is about to register.
    Rendezvous,
    /// Buffers are allocated and weights made.
    Load,
    /// The first forward pass.
    FirstStep,
    /// A backward pass in mid-run.
    MidStep,
    /// Gradients are reduced.
    Reduce,
    /// The optimizer's update.
    Update,
    /// Half of the state is copied to the launcher's memory.
    Snapshot,
    /// A checkpoint is about to be written.
    Checkpoint,
    /// The final model is about to be written.
    Save,
    /// All work is done.
    Shutdown,
}

impl Phase {
    /// As DSLAUNCH_FAULT has it. The job has 12 steps, with a checkpoint after every fourth.
    pub fn words(self) -> &'static str {
        match self {
            Phase::Spawn => "phase=start",
            Phase::Rendezvous => "phase=rendezvous",
            Phase::Load => "phase=load",
            Phase::FirstStep => "phase=forward step=1",
            Phase::MidStep => "phase=backward step=6 unit=1",
            Phase::Reduce => "phase=reduce step=6",
            Phase::Update => "phase=update step=6",
            Phase::Snapshot => "phase=snapshot step=6 unit=2",
            Phase::Checkpoint => "phase=checkpoint step=8",
            Phase::Save => "phase=save",
            Phase::Shutdown => "phase=end",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Spawn => "spawn",
            Phase::Rendezvous => "rendezvous",
            Phase::Load => "load",
            Phase::FirstStep => "first step",
            Phase::MidStep => "mid-step",
            Phase::Reduce => "reduce",
            Phase::Update => "update",
            Phase::Snapshot => "snapshot",
            Phase::Checkpoint => "checkpoint",
            Phase::Save => "save",
            Phase::Shutdown => "shutdown",
        })
    }
}

/// To whom it happens, of two ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// Rank 0.
    First,
    /// Rank 1.
    Last,
    /// Both.
    All,
}

impl Victim {
    /// The rank, where it is one.
    pub fn rank(self) -> Option<u64> {
        match self {
            Victim::First => Some(0),
            Victim::Last => Some(1),
            Victim::All => None,
        }
    }
}

/// Every phase.
pub const PHASES: [Phase; 11] = [
    Phase::Spawn,
    Phase::Rendezvous,
    Phase::Load,
    Phase::FirstStep,
    Phase::MidStep,
    Phase::Reduce,
    Phase::Update,
    Phase::Snapshot,
    Phase::Checkpoint,
    Phase::Save,
    Phase::Shutdown,
];

/// The phases in which ranks exchange something, and so can hang in an exchange.
const EXCHANGES: [Phase; 5] = [Phase::Rendezvous, Phase::Reduce, Phase::Update, Phase::Checkpoint, Phase::Save];

const fn recovers(word: &'static str, cause: &'static str) -> Kind {
    Kind { word, ending: Ending::Recovers, cause, phases: &PHASES }
}

const fn ends(word: &'static str, ending: Ending) -> Kind {
    Kind { word, ending, cause: "", phases: &PHASES }
}

/// Every kind that a rank can bring about.
pub const KINDS: [Kind; 15] = [
    recovers("kill", "SIGKILL"),
    recovers("segv", "SIGSEGV"),
    recovers("abort", "SIGABRT"),
    recovers("panic", "exited with code 101"),
    recovers("exit=7", "exited with code 7"),
    recovers("exit=0", "exited with code 0 before its work was done"),
    recovers("stop", "is stopped"),
    recovers("hang", "hangs"),
    recovers("spin", "spins"),
    Kind { phases: &EXCHANGES, ..recovers("hang-inside", "hangs inside") },
    Kind { cause: "memory", ..ends("memory", Ending::GivesUp) },
    ends("term", Ending::Unharmed),
    ends("disconnect", Ending::Unharmed),
    ends("kill-launcher", Ending::LauncherGone),
    ends("kill-guardian", Ending::LauncherGone),
];

/// A fault, its phase and its victim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// The fault.
    pub kind: Kind,
    /// When.
    pub phase: Phase,
    /// To whom.
    pub victim: Victim,
}

impl Cell {
    /// All of them.
    pub fn all() -> Vec<Cell> {
        let of_kind = |kind: Kind| {
            let victims: &[Victim] = match kind.ending {
                // Whichever rank does it.
                Ending::LauncherGone => &[Victim::First],
                _ => &[Victim::First, Victim::Last, Victim::All],
            };
            let phases = kind.phases.iter();
            phases.flat_map(move |&phase| victims.iter().map(move |&victim| Cell { kind, phase, victim }))
        };
        KINDS.into_iter().flat_map(of_kind).collect()
    }

    /// A few that stand for the rest: each kind at one phase at least, each phase with several kinds.
    pub fn some() -> Vec<Cell> {
        let phase_of = |kind: usize| [kind % PHASES.len(), (kind * 3 + 5) % PHASES.len()].map(|phase| PHASES[phase]);
        let victims = [Victim::Last, Victim::First, Victim::All];
        let chosen = |cell: &Cell| {
            let kind = KINDS.iter().position(|kind| kind.word == cell.kind.word).expect("one of them");
            let victim = if cell.kind.ending == Ending::LauncherGone { Victim::First } else { victims[kind % 3] };
            let is_inside = cell.kind.phases.len() < PHASES.len();
            let phases = if is_inside { [Phase::Rendezvous, Phase::Reduce] } else { phase_of(kind) };
            phases.contains(&cell.phase) && cell.victim == victim
        };
        Self::all().into_iter().filter(chosen).collect()
    }

    /// For DSLAUNCH_FAULT.
    pub fn fault(&self) -> String {
        let rank = self.victim.rank().map_or(String::new(), |rank| format!("rank={rank}"));
        format!("{} {} {rank}", self.kind.word, self.phase.words())
    }

    /// A name for a folder.
    pub fn folder(&self) -> String {
        format!("{}-{:?}-{:?}", self.kind.word, self.phase, self.victim).replace('=', "-")
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} of {:?}", self.kind.word, self.phase, self.victim)
    }
}
