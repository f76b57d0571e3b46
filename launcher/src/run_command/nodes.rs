//! `--nnodes`: how many machines. Pure.

use std::str::FromStr;

use super::error::RunError;

/// How many machines the user wants: this many, or anything between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumNodes {
    min: u32,
    max: u32,
}

impl NumNodes {
    /// One machine: this one.
    pub const ONE: Self = Self { min: 1, max: 1 };
}

impl FromStr for NumNodes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (min, max) = text.split_once(':').unwrap_or((text, text));
        match (min.parse(), max.parse()) {
            (Ok(min), Ok(max)) if 1 <= min && min <= max => Ok(Self { min, max }),
            _ => Err("expected N or MIN:MAX, from 1 on".to_owned()),
        }
    }
}

/// The one place that refuses what needs more machines than this one.
pub fn check(nodes: NumNodes, node_rank: u32) -> Result<(), RunError> {
    match nodes {
        NumNodes::ONE if node_rank == 0 => Ok(()),
        NumNodes::ONE => Err(RunError::NodeRank(node_rank)),
        NumNodes { min, max } if min == max => Err(RunError::ManyNodes(min.to_string())),
        NumNodes { min, max } => Err(RunError::ManyNodes(format!("{min}:{max}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_machine_is_what_there_is() {
        let refusal = |nodes: &str, rank| check(nodes.parse().unwrap(), rank).map_err(|error| error.to_string());
        assert_eq!(refusal("1", 0), Ok(()));
        assert_eq!(refusal("1:1", 0), Ok(()));
        assert_eq!(
            refusal("1:4", 0).unwrap_err(),
            "--nnodes 1:4: several machines, or a number that changes, are not there yet: only --nnodes 1"
        );
        assert!(refusal("2", 0).unwrap_err().starts_with("--nnodes 2: "));
        assert_eq!(refusal("1", 1).unwrap_err(), "--node-rank 1: with one machine there is only 0");
        for wrong in ["", "0", "2:1", "a", "1:2:3", "1:", "-1"] {
            assert!(wrong.parse::<NumNodes>().is_err(), "{wrong}");
        }
    }
}
