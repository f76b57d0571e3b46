//! Random weights are drawn in chunks. Alone in its process: libtorch's generator is everybody's.

use rank::engine::row_chunks::row_chunks;
use tch::{Device, Kind, Tensor};

#[test]
fn numbers_drawn_in_chunks_are_those_drawn_at_once() {
    for (rows, row_numel) in [(20_000, 64), (2_003, 1_001), (70, 1 << 16), (1_100_000, 1)] {
        tch::manual_seed(7);
        let whole = Tensor::empty([rows, row_numel], (Kind::Float, Device::Cpu)).normal_(0.0, 0.02);
        tch::manual_seed(7);
        let drawn = row_chunks(0..rows as usize, row_numel as usize)
            .map(|chunk| Tensor::empty([chunk.len() as i64, row_numel], (Kind::Float, Device::Cpu)).normal_(0.0, 0.02));
        let drawn: Vec<_> = drawn.collect();
        assert!(drawn.len() > 1);
        assert_eq!(Tensor::cat(&drawn, 0), whole, "{rows} rows of {row_numel}");
    }
}
