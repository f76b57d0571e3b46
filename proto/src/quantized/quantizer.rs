//! Brings a matrix to few bits while its rows pass by.

use std::ops::Range;

use super::{Format, NotFinite, PackedMatrix, dynamic, int8, largest_magnitude, nf4};

/// Takes the whole matrix, row after row, and keeps what belongs to a rank's part of it.
pub struct Quantizer<'a> {
    matrix: &'a PackedMatrix,
    /// The part's.
    bytes: &'a mut [u8],
    /// The largest magnitude of each block of the whole matrix, as far as it has been seen.
    scales: Vec<f32>,
    /// Elements that have been seen, but for those that wait.
    seen: usize,
    /// The first elements of a block whose others are to come.
    waiting: Vec<f32>,
}

impl<'a> Quantizer<'a> {
    /// Writes the part `matrix` into `bytes`, as many as it has.
    pub fn new(matrix: &'a PackedMatrix, bytes: &'a mut [u8]) -> Self {
        assert_eq!(bytes.len(), matrix.bytes(), "{matrix:?}");
        assert!(matrix.is_cut_between_blocks(), "{matrix:?} is cut through a block");
        Self { matrix, bytes, scales: Vec::with_capacity(matrix.num_whole_blocks()), seen: 0, waiting: Vec::new() }
    }

    /// Takes the next rows of the whole matrix.
    ///
    /// # Errors
    /// One of the values is not finite.
    pub fn take(&mut self, rows: &[f32]) -> Result<(), NotFinite> {
        let width = self.matrix.whole[1];
        if let Some(idx) = rows.iter().position(|value| !value.is_finite()) {
            let at = self.seen + self.waiting.len() + idx;
            return Err(NotFinite { row: at / width, column: at % width, value: rows[idx] });
        }
        match self.matrix.format {
            Format::Int8 => rows.chunks(width).for_each(|row| self.take_row(row)),
            Format::Nf4 => self.take_blocks(rows),
        }
        Ok(())
    }

    fn take_row(&mut self, values: &[f32]) {
        let (row, scale) = (self.scales.len(), largest_magnitude(values));
        self.scales.push(scale);
        self.seen += values.len();
        let PackedMatrix { rows, columns, .. } = self.matrix;
        if rows.contains(&row) {
            let start = self.matrix.codes().start + (row - rows.start) * columns.len();
            int8::quantize(&values[columns.clone()], scale, &mut self.bytes[start..start + columns.len()]);
        }
    }

    fn take_blocks(&mut self, mut values: &[f32]) {
        if !self.waiting.is_empty() {
            let missing = (nf4::BLOCK - self.waiting.len()).min(values.len());
            self.waiting.extend_from_slice(&values[..missing]);
            values = &values[missing..];
            if self.waiting.len() < nf4::BLOCK {
                return;
            }
            let block = std::mem::take(&mut self.waiting);
            self.take_block(&block);
        }
        let blocks = values.chunks_exact(nf4::BLOCK);
        self.waiting = blocks.remainder().to_vec();
        blocks.for_each(|block| self.take_block(block));
    }

    fn take_block(&mut self, values: &[f32]) {
        let (block, scale) = (self.scales.len(), largest_magnitude(values));
        self.scales.push(scale);
        self.seen += values.len();
        if let Some(block) = self.own_block(block) {
            let codes = block * nf4::BLOCK / 2;
            let codes = codes..codes + values.len().div_ceil(2);
            nf4::quantize(values, scale, &mut self.bytes[codes]);
        }
    }

    /// The number that a block of the whole matrix has in the part, if it is there.
    fn own_block(&self, block: usize) -> Option<usize> {
        let (PackedMatrix { whole: [_, width], columns, .. }, places) = (self.matrix, self.matrix.block_places());
        if columns.len() == *width {
            let own = block.checked_sub(places.first as usize)?;
            return (own < self.matrix.num_blocks()).then_some(own);
        }
        let [run, stride] = [places.run, places.stride].map(|count| count as usize);
        let own = (block % stride).checked_sub(places.first as usize)?;
        (own < run).then_some(block / stride * run + own)
    }

    /// Writes the scales.
    ///
    /// # Panics
    /// If not the whole matrix has been seen.
    pub fn finish(mut self) {
        let [rows, width] = self.matrix.whole;
        if !self.waiting.is_empty() && self.seen + self.waiting.len() == rows * width {
            let block = std::mem::take(&mut self.waiting);
            self.take_block(&block);
        }
        assert_eq!(self.seen, rows * width, "{:?} has been seen in part", self.matrix);
        match self.matrix.format {
            Format::Int8 => {
                let rows = self.matrix.rows.clone();
                write_numbers(&mut self.bytes[self.matrix.scales()], self.scales[rows].iter().copied());
            }
            Format::Nf4 => self.write_scales_of_blocks(),
        }
    }

    /// Brings the scales to 8 bits themselves: how far they are from their mean.
    fn write_scales_of_blocks(&mut self) {
        let count = self.scales.len().max(1) as f64;
        let mean = (self.scales.iter().map(|scale| f64::from(*scale)).sum::<f64>() / count) as f32;
        self.scales.iter_mut().for_each(|scale| *scale -= mean);
        let mut codes = vec![0; self.scales.len()];
        let groups = self.scales.chunks(nf4::SCALES_PER_SCALE).zip(codes.chunks_mut(nf4::SCALES_PER_SCALE));
        let scales: Vec<f32> = groups.map(|(scales, codes)| dynamic::quantize(scales, codes)).collect();
        let places = self.matrix.block_places();
        let Range { start, end } = self.matrix.scale_codes();
        for (block, code) in self.bytes[start..end].iter_mut().enumerate() {
            *code = codes[places.of(block)];
        }
        let numbers = [mean].into_iter().chain(*dynamic::values()).chain(scales);
        write_numbers(&mut self.bytes[self.matrix.scales()], numbers);
    }
}

fn write_numbers(bytes: &mut [u8], numbers: impl Iterator<Item = f32>) {
    for (bytes, number) in bytes.chunks_exact_mut(4).zip(numbers) {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
}
