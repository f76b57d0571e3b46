//! Which rows of its files a split has. Pure.
//!
//! - HLD-1 A row is held out, or it is not, by its bytes alone: so equal rows are on the same side, and rows that are added elsewhere
//!   change nothing for it.

/// The rows of its files that a split has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Portion {
    /// All of them.
    All,
    /// Those that are not held out, where this share is.
    Rest(f64),
    /// Those that are held out: this share of them.
    HeldOut(f64),
}

impl Portion {
    /// Whether a row, as its container has it, is one of them.
    pub fn has(self, row: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::Rest(share) => !is_held_out(row, share),
            Self::HeldOut(share) => is_held_out(row, share),
        }
    }

    /// What it means that a split has none of its rows, in words.
    pub(super) fn emptiness(self) -> String {
        match self {
            Self::All => "there are no rows".to_owned(),
            Self::Rest(share) => format!("data.validation_share = {share} holds out every row: lower it"),
            Self::HeldOut(share) => {
                format!(
                    "data.validation_share = {share} holds out none of the rows: raise it, or name files in data.validation"
                )
            }
        }
    }
}

fn is_held_out(row: &[u8], share: f64) -> bool {
    let hash = blake3::hash(row);
    let number = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"));
    (number as f64) < share * 2f64.powi(64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_on_one_side_and_few_change_sides_with_the_share() {
        let rows: Vec<String> = (0..20_000).map(|row| format!("{{\"text\": \"{row}\"}}")).collect();
        let held_out = |share: f64| rows.iter().map(move |row| Portion::HeldOut(share).has(row.as_bytes()));
        for share in [0.0, 0.01, 0.1, 0.5] {
            let count = held_out(share).filter(|is_held_out| *is_held_out).count() as f64;
            let deviation = (20_000.0 * share * (1.0 - share)).sqrt();
            assert!((count - 20_000.0 * share).abs() <= 4.0 * deviation, "{count} of 20000 at {share}");
            for (row, is_held_out) in rows.iter().zip(held_out(share)) {
                assert!(Portion::Rest(share).has(row.as_bytes()) != is_held_out && Portion::All.has(row.as_bytes()));
            }
        }
        // HLD-1: with a larger share those stay that were held out.
        assert!(held_out(0.1).zip(held_out(0.2)).all(|(one, other)| !one || other));
    }
}
