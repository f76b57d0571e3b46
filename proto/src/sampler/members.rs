//! The rows of each class, and the order in which they are drawn.

use super::permutation::{mix, permuted};

/// Which rows are of which class: 4 bytes a row.
#[derive(Debug, Clone)]
pub(super) struct Members {
    /// All rows, class by class, those of one class ascending.
    rows: Vec<u32>,
    /// Where in `rows` each class begins, and the end.
    bounds: Vec<usize>,
    /// `None` keeps the file's order within each class.
    seed: Option<u64>,
}

impl Members {
    /// `class_of_row`: of each row in turn, below `num_classes`. Panics where a class has no row.
    pub fn new(class_of_row: impl Iterator<Item = u32> + Clone, num_classes: usize, seed: Option<u64>) -> Self {
        let mut bounds = vec![0; num_classes + 1];
        class_of_row.clone().for_each(|class| bounds[class as usize + 1] += 1);
        for class in 0..num_classes {
            assert!(bounds[class + 1] > 0, "class {class} has no row");
            bounds[class + 1] += bounds[class];
        }
        let mut rows = vec![0; bounds[num_classes]];
        let mut next = bounds.clone();
        for (row, class) in class_of_row.enumerate() {
            let place = &mut next[class as usize];
            rows[*place] = u32::try_from(row).expect("the plan has counted the rows");
            *place += 1;
        }
        Self { rows, bounds, seed }
    }

    /// Rows of all classes.
    pub fn num_rows(&self) -> u64 {
        self.rows.len() as u64
    }

    /// The row that is drawn from `class` after `before` others of it: every pass over a class holds each of its rows once.
    pub fn draw(&self, class: usize, before: u64) -> u64 {
        let rows = &self.rows[self.bounds[class]..self.bounds[class + 1]];
        let len = rows.len() as u64;
        let (pass, place) = (before / len, before % len);
        let place = match self.seed {
            None => place,
            // Another key for each class: two of one size would go in step otherwise.
            Some(seed) => permuted(len, mix(mix(mix(seed) ^ mix(class as u64 + 1)) ^ pass), place),
        };
        rows[place as usize].into()
    }
}
