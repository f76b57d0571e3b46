//! The index of streamed data: where each window begins in the sources, and how many rows a pass over all of them has. It only
//! grows: a window that was made once is made again with the same bits from here.
//!
//! It is a sealed file beside the windows, replaced whole whenever one is made.

use std::io;
use std::path::{Path, PathBuf};

use proto::sealed::{self, SealedError};
use serde::{Deserialize, Serialize};

use crate::data::build::Place;
use crate::files::write_atomically;

/// What is known of all windows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Rows of each window but the last.
    window: u64,
    /// Where each begins: those that were made once, and the next one, unless there is none.
    begins: Vec<Begin>,
    /// Rows of a pass over all windows, once that is known.
    rows: Option<u64>,
    /// Targets that count, of the windows that were made once.
    label_tokens: u64,
}

/// Where a window begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u64, u64, Option<u64>)", into = "(u32, u64, u64, Option<u64>)")]
pub struct Begin {
    /// The row of its first sample.
    pub place: Place,
    /// Samples of that row that belong to the window before: pieces of a long text.
    pub samples: u64,
    /// Where in the file that row begins, if it can be read from there on.
    pub byte: Option<u64>,
}

/// A window as training comes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// The number of the window, from 0.
    pub number: u64,
    /// The pass over all windows, from 0.
    pub pass: u64,
    /// The position of its first row.
    pub first_position: u64,
}

/// A window that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Its number.
    pub number: u64,
    /// Its rows.
    pub rows: u64,
    /// Its targets that count.
    pub label_tokens: u64,
    /// Where the next one begins; `None`: the sources have ended.
    pub next: Option<Begin>,
}

/// A window that is made again is not what it was: the sources are other ones.
#[derive(Debug, PartialEq, Eq)]
pub struct Differs;

impl Index {
    /// Of windows of which nothing is known but where the first begins.
    pub fn new(window: u64) -> Self {
        Self { window, begins: vec![Begin::default()], rows: None, label_tokens: 0 }
    }

    /// Reads the index in `folder`; `None`: there is none.
    pub fn load(folder: &Path) -> Result<Option<Self>, SealedError> {
        match sealed::read(&path(folder)) {
            Err(SealedError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }

    /// Writes the index into `folder`.
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        write_atomically(&path(folder), sealed::to_text(self).as_bytes())
    }

    /// How many windows it is known of where they begin.
    pub fn known(&self) -> u64 {
        self.begins.len() as u64
    }

    /// How many windows there are, once that is known.
    pub fn count(&self) -> Option<u64> {
        self.rows.map(|_| self.known())
    }

    /// Rows of a pass, once that is known.
    pub fn rows(&self) -> Option<u64> {
        self.rows
    }

    /// Targets that count, of all windows that were made once.
    pub fn label_tokens(&self) -> u64 {
        self.label_tokens
    }

    /// Where a window begins of which that is known.
    pub fn begin(&self, number: u64) -> Begin {
        self.begins[number as usize]
    }

    /// The window that has the row at `position`, as far as it is known.
    pub fn spot(&self, position: u64) -> Spot {
        let (pass, place) = self.rows.map_or((0, position), |rows| (position / rows, position % rows));
        Spot { number: place / self.window, pass, first_position: position - place % self.window }
    }

    /// Takes note of a window that was made, the first time or again.
    pub fn made(&mut self, made: Made) -> Result<(), Differs> {
        let Made { number, rows, label_tokens, next } = made;
        let is_first_time = number + 1 == self.known() && self.rows.is_none();
        if !is_first_time {
            let (is_last, expected) = (number + 1 == self.known(), self.begins.get(number as usize + 1));
            let expected_rows =
                if is_last { self.rows.map(|rows| rows - number * self.window) } else { Some(self.window) };
            return if expected.copied() == next && expected_rows == Some(rows) { Ok(()) } else { Err(Differs) };
        }
        self.label_tokens += label_tokens;
        match next {
            Some(next) => self.begins.push(next),
            None => self.rows = Some(number * self.window + rows),
        }
        Ok(())
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join("index.json")
}

impl From<(u32, u64, u64, Option<u64>)> for Begin {
    fn from((file, row, samples, byte): (u32, u64, u64, Option<u64>)) -> Self {
        Self { place: Place { file, row }, samples, byte }
    }
}

impl From<Begin> for (u32, u64, u64, Option<u64>) {
    fn from(Begin { place: Place { file, row }, samples, byte }: Begin) -> Self {
        (file, row, samples, byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(number: u64, rows: u64, next: Option<(u32, u64, u64)>) -> Made {
        Made {
            number,
            rows,
            label_tokens: 5,
            next: next.map(|(file, row, samples)| (file, row, samples, Some(9)).into()),
        }
    }

    /// Three windows of 10, 10 and 4 rows.
    fn whole() -> Index {
        let mut index = Index::new(10);
        for (number, rows, next) in [(0, 10, Some((0, 31, 0))), (1, 10, Some((1, 7, 2))), (2, 4, None)] {
            index.made(made(number, rows, next)).unwrap();
        }
        index
    }

    #[test]
    fn positions_go_on_with_the_first_window_after_the_last() {
        let spot = |index: &Index, position| {
            let Spot { number, pass, first_position } = index.spot(position);
            (number, pass, first_position)
        };
        let index = whole();
        assert_eq!((index.rows(), index.count(), index.label_tokens()), (Some(24), Some(3), 15));
        let cases =
            [(0, (0, 0, 0)), (9, (0, 0, 0)), (10, (1, 0, 10)), (23, (2, 0, 20)), (24, (0, 1, 24)), (47, (2, 1, 44))];
        for (position, expected) in cases {
            assert_eq!(spot(&index, position), expected, "{position}");
        }
        assert_eq!(spot(&Index::new(10), 47), (4, 0, 40), "as if the sources had no end");
    }

    #[test]
    fn a_window_that_is_made_again_has_to_be_what_it_was() {
        let mut index = whole();
        let before = index.clone();
        for same in [made(0, 10, Some((0, 31, 0))), made(1, 10, Some((1, 7, 2))), made(2, 4, None)] {
            assert_eq!(index.made(same), Ok(()));
        }
        for other in [made(0, 10, Some((0, 30, 0))), made(1, 10, None), made(2, 5, None), made(2, 4, Some((1, 9, 0)))] {
            assert_eq!(index.made(other), Err(Differs), "{other:?}");
        }
        assert_eq!(index, before);
    }

    #[test]
    fn an_index_survives_its_file_and_no_change_of_it() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Index::load(folder.path()).unwrap(), None);
        whole().save(folder.path()).unwrap();
        assert_eq!(Index::load(folder.path()).unwrap(), Some(whole()));
        let text = std::fs::read_to_string(path(folder.path())).unwrap();
        std::fs::write(path(folder.path()), text.replace("31", "32")).unwrap();
        assert!(Index::load(folder.path()).is_err());
    }
}
