//! The destinations of ranks' streams: the grammars of `-r`, `-t` and `--local-ranks-filter`, and what follows. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use crate::output::terminal::Stream;

/// `-r` or `-t`: a mode for all ranks, or for some (`0:3,12:1`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RankStreams {
    /// The same for every rank.
    All(Mode),
    /// By local rank; none of the others'.
    Some(BTreeMap<usize, Mode>),
}

/// A choice of a rank's two streams; torchrun writes it as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 0: neither.
    Neither,
    /// 1: standard output.
    Out,
    /// 2: standard error.
    Err,
    /// 3: both.
    Both,
}

/// `--local-ranks-filter`: the ranks that the terminal shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankFilter(BTreeSet<usize>);

/// The destination of one stream of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// Straight to where the launcher's own goes.
    Terminal,
    /// Nowhere.
    Nowhere,
    /// To a file.
    File,
    /// To a file, and from there line by line to the terminal.
    Tee,
}

/// The flags about streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streams {
    /// Streams that go to files.
    pub redirects: RankStreams,
    /// Streams that go to files and to the terminal.
    pub tee: RankStreams,
    /// The ranks whose lines the terminal shows; `None`: all.
    pub filter: Option<RankFilter>,
}

impl Streams {
    /// The destination of `stream` of the rank `local_rank`.
    pub fn destination(&self, local_rank: usize, stream: Stream) -> Destination {
        let teed = self.tee.includes(local_rank, stream);
        let to_file = teed || self.redirects.includes(local_rank, stream);
        let shown = self.filter.as_ref().is_none_or(|RankFilter(ranks)| ranks.contains(&local_rank));
        match (to_file, teed, shown) {
            (true, true, true) => Destination::Tee,
            (true, _, _) => Destination::File,
            (false, _, true) => Destination::Terminal,
            (false, _, false) => Destination::Nowhere,
        }
    }

    /// True if any stream of the first `num_workers` ranks goes to a file.
    pub fn any_file(&self, num_workers: usize) -> bool {
        let to_file = |rank, stream| matches!(self.destination(rank, stream), Destination::File | Destination::Tee);
        (0..num_workers).any(|rank| to_file(rank, Stream::Out) || to_file(rank, Stream::Err))
    }
}

impl RankStreams {
    fn includes(&self, rank: usize, stream: Stream) -> bool {
        let mode = match self {
            RankStreams::All(mode) => *mode,
            RankStreams::Some(modes) => modes.get(&rank).copied().unwrap_or(Mode::Neither),
        };
        match stream {
            Stream::Out => matches!(mode, Mode::Out | Mode::Both),
            Stream::Err => matches!(mode, Mode::Err | Mode::Both),
        }
    }
}

impl FromStr for RankStreams {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rule = "expected 0 (neither), 1 (stdout), 2 (stderr) or 3 (both), or RANK:MODE,... as in 0:3,12:1";
        let entry = |entry: &str| {
            let (rank, mode) = entry.split_once(':')?;
            Some((number(rank)?, mode_of(mode)?))
        };
        let all = mode_of(text).map(RankStreams::All);
        let some = || text.split(',').map(entry).collect::<Option<_>>().map(RankStreams::Some);
        all.or_else(some).ok_or_else(|| rule.to_owned())
    }
}

impl FromStr for RankFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ranks = text.split(',').map(number).collect::<Option<_>>();
        ranks.map(Self).ok_or_else(|| "expected local ranks, separated by commas, as in 0,2,12".to_owned())
    }
}

fn mode_of(text: &str) -> Option<Mode> {
    match text {
        "0" => Some(Mode::Neither),
        "1" => Some(Mode::Out),
        "2" => Some(Mode::Err),
        "3" => Some(Mode::Both),
        _ => None,
    }
}

/// Digits and nothing else: no sign.
fn number(text: &str) -> Option<usize> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_for_all_ranks_or_for_some() {
        let check = |text: &str, expected: RankStreams| assert_eq!(text.parse(), Ok(expected), "{text}");
        check("0", RankStreams::All(Mode::Neither));
        check("3", RankStreams::All(Mode::Both));
        check("0:3", RankStreams::Some([(0, Mode::Both)].into()));
        check("0:1,12:2,3:0", RankStreams::Some([(0, Mode::Out), (3, Mode::Neither), (12, Mode::Err)].into()));
        for wrong in ["", "4", "-1", "3,", "0:4", "0:", ":1", "0:1,", "0:1 ,1:2", "+1:1", "a:1", "0:1:2", "33"] {
            assert!(wrong.parse::<RankStreams>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_filter_names_ranks_of_any_length() {
        assert_eq!("0,2,12".parse(), Ok(RankFilter([0, 2, 12].into())));
        for wrong in ["", "0,", "a", "-1", "0 1"] {
            assert!(wrong.parse::<RankFilter>().is_err(), "{wrong}");
        }
    }

    /// `flags`: of `-r`, `-t` and the filter.
    fn check(flags: (&str, &str, &str), rank: usize, out: Destination, err: Destination) {
        let (redirects, tee, filter) = flags;
        let streams = Streams {
            redirects: redirects.parse().unwrap(),
            tee: tee.parse().unwrap(),
            filter: (!filter.is_empty()).then(|| filter.parse().unwrap()),
        };
        let to = |stream| streams.destination(rank, stream);
        assert_eq!((to(Stream::Out), to(Stream::Err)), (out, err), "rank {rank} with {flags:?}");
    }

    #[test]
    fn a_stream_goes_where_the_flags_say() {
        use Destination::{File, Nowhere, Tee, Terminal};
        check(("0", "0", ""), 0, Terminal, Terminal);
        check(("1", "2", ""), 5, File, Tee);
        check(("3", "1", ""), 0, Tee, File);
        check(("10:2", "11:1", ""), 10, Terminal, File);
        check(("10:2", "11:1", ""), 11, Tee, Terminal);
        check(("10:2", "11:1", ""), 1, Terminal, Terminal);
        check(("0", "0", "11"), 11, Terminal, Terminal);
        check(("0", "0", "11"), 1, Nowhere, Nowhere);
        check(("1", "2", "0"), 1, File, File);
    }
}
