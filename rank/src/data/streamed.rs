//! The windows of streamed training rows that a rank has at hand: those of the step at hand and of the one before.

use std::ops::Range;
use std::path::{Path, PathBuf};

use proto::control::Window;
use proto::dataset::{Dataset, DatasetError};
use proto::run_dir::window_file;
use proto::sampler::RowOrder;

use super::{MappedFile, PlacedRow, open};

/// Where windows come from.
pub trait Supply {
    /// Why there is none, or it cannot be read.
    type Error: From<DatasetError>;

    /// The window that holds the row at `position`, for which it may have to wait; `None`: it cannot be prepared.
    fn window(&self, position: u64) -> Result<Option<Window>, Self::Error>;
}

/// The windows at hand.
pub(super) struct Windows {
    folder: PathBuf,
    /// `None`: rows come in the order of the sources.
    seed: Option<u64>,
    /// In the order of their positions.
    at_hand: Vec<MappedWindow>,
}

struct MappedWindow {
    pass: u64,
    first_position: u64,
    rows: Dataset<MappedFile>,
    order: RowOrder,
}

impl Windows {
    /// None of those in `folder` yet.
    pub fn new(folder: &Path, seed: Option<u64>) -> Self {
        Self { folder: folder.to_owned(), seed, at_hand: vec![] }
    }

    /// Lets go of windows that only have rows before `position`.
    pub fn forget_before(&mut self, position: u64) {
        self.at_hand.retain(|window| window.end() > position);
    }

    /// Gets the windows that hold the rows at `positions`; false: there is one that cannot be prepared.
    pub fn fetch<S: Supply>(&mut self, positions: Range<u64>, supply: &S) -> Result<bool, S::Error> {
        let mut position = positions.start;
        while position < positions.end {
            if let Some(window) = self.holding(position) {
                position = window.end();
                continue;
            }
            let Some(Window { number, pass, first_position }) = supply.window(position)? else { return Ok(false) };
            let rows = open(&window_file(&self.folder, number))?;
            let order = RowOrder::of_window(rows.num_rows() as u64, self.seed, number);
            let window = MappedWindow { pass, first_position, rows, order };
            assert!(window.holds(position), "window {number} for the row at {position}");
            self.at_hand.push(window);
        }
        Ok(true)
    }

    /// The row at `position`, which was fetched.
    pub fn row(&self, position: u64) -> PlacedRow<'_> {
        let window = self.holding(position).expect("the rows of a step are fetched before it");
        let row = window.order.row_of(window.pass, position - window.first_position);
        PlacedRow { file: &window.rows, row: row as usize }
    }

    fn holding(&self, position: u64) -> Option<&MappedWindow> {
        self.at_hand.iter().find(|window| window.holds(position))
    }
}

impl MappedWindow {
    fn end(&self) -> u64 {
        self.first_position + self.rows.num_rows() as u64
    }

    fn holds(&self, position: u64) -> bool {
        (self.first_position..self.end()).contains(&position)
    }
}
