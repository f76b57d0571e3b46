//! What a GPU is like at one moment, as metrics rows show it. Pure data.

use serde::Serialize;

/// One GPU at one moment. What a GPU, or a container, does not tell is missing.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Sample {
    /// Its index on this machine.
    pub gpu: usize,
    /// Part of the last second in which a kernel ran, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub utilization: Option<u32>,
    /// Bytes in use, by whomever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_used: Option<u64>,
    /// Temperature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub celsius: Option<u32>,
    /// Power.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watts: Option<f64>,
    /// Clock of the multiprocessors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sm_megahertz: Option<u32>,
    /// Why the clocks are lower than they could be.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub throttled: Vec<Throttle>,
    /// Errors of its memory that were not corrected, since it was last reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecc_errors: Option<u64>,
}

/// A reason for low clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Throttle {
    /// It draws as much power as it may: usual under full load.
    PowerCap,
    /// It, or its memory, is too hot.
    Thermal,
    /// The machine cannot give it more power, or its hardware slows it down.
    Hardware,
}
