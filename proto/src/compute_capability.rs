//! The least compute capabilities, `(major, minor)`, of GPUs that ranks use: the launcher refuses what they would.

/// To train: an A100's, the first with bf16.
pub const LEAST: (u32, u32) = (8, 0);

/// To multiply in fp8: an L4's and an RTX 40's; an H100 has 9.0.
pub const LEAST_FOR_FP8: (u32, u32) = (8, 9);
