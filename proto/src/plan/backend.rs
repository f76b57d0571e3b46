//! What carries the collectives of a job.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What carries the collectives of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Shared memory, between CPU ranks of one machine. A single CPU rank has it too: its buffers lie in that memory,
    /// whether somebody else sees them or not.
    Shm,
    /// NCCL, between GPUs.
    Nccl,
    /// TCP, between CPU ranks of several machines.
    Tcp,
    /// Nothing: one rank on a GPU, which shares no memory with anybody.
    Solo,
}

impl Backend {
    /// The spelling in `plan.json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shm => "shm",
            Self::Nccl => "nccl",
            Self::Tcp => "tcp",
            Self::Solo => "solo",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_spelled_alike_everywhere() {
        for backend in [Backend::Shm, Backend::Nccl, Backend::Tcp, Backend::Solo] {
            assert_eq!(serde_json::to_value(backend).unwrap(), backend.as_str());
        }
    }
}
