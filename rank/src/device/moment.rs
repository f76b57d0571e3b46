//! A moment of what the device does, to measure by.

use std::time::Instant;

use super::cuda::gpu;
use super::cuda::torch::Event;

/// When the device has done all that this thread has started. On a CPU, and on an emulated GPU, that is now.
#[derive(Debug)]
pub enum Moment {
    /// Of the host.
    Host(Instant),
    /// Of a GPU.
    Gpu(Event),
}

impl Moment {
    /// After all that was started so far. Does not wait for it.
    pub fn now() -> Self {
        match gpu::memory() {
            Some(tch::Device::Cuda(ordinal)) => {
                Self::Gpu(Event::record(ordinal).unwrap_or_else(|error| panic!("{error}")))
            }
            _ => Self::Host(Instant::now()),
        }
    }

    /// Milliseconds from an earlier moment to this one. Waits for it.
    pub fn milliseconds_since(&self, earlier: &Self) -> f64 {
        match (earlier, self) {
            (Self::Host(earlier), Self::Host(later)) => (*later - *earlier).as_secs_f64() * 1e3,
            (Self::Gpu(earlier), Self::Gpu(later)) => {
                later.milliseconds_since(earlier).unwrap_or_else(|error| panic!("{error}"))
            }
            _ => panic!("moments of two devices"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes() {
        let [first, second] = [(); 2].map(|()| Moment::now());
        assert!((0.0..1e4).contains(&second.milliseconds_since(&first)));
    }
}
