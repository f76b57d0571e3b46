//! Looks at the GPUs of a job once a second, from a thread of its own: a driver whose GPU has fallen off the bus may not answer for
//! long.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, EventSet, Nvml};

use super::library;
use super::sample::{Sample, Throttle};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Looks that wait to be taken at most.
const KEPT: usize = 64;

/// An error that the driver has told of a GPU, by NVIDIA's number for its kind (Xid).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xid {
    /// The GPU's index.
    pub gpu: usize,
    /// Its number; `None`: the driver does not say.
    pub number: Option<u64>,
}

/// What has been seen since it was last taken.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Looks {
    /// In order, each GPU once a second.
    pub samples: Vec<Sample>,
    /// Errors that the driver has told of.
    pub xids: Vec<Xid>,
}

/// The thread that looks. It ends, as soon as the driver lets it, when this is dropped.
#[derive(Debug)]
pub struct Watch {
    seen: Arc<Mutex<Looks>>,
    /// Wants a look at once, and to be told when that is done.
    wishes: mpsc::Sender<mpsc::Sender<()>>,
}

impl Watch {
    /// Looks at the GPUs of these indices from now on.
    pub fn start(gpus: Vec<usize>) -> std::io::Result<Self> {
        let (wishes, wished) = mpsc::channel::<mpsc::Sender<()>>();
        let seen = Arc::new(Mutex::new(Looks::default()));
        let to = seen.clone();
        thread::Builder::new().name("gpus".into()).spawn(move || {
            // A driver that does not answer has been told of when the job was planned.
            let Ok(nvml) = library() else { return };
            let events = register(&nvml, &gpus);
            loop {
                let wish = match wished.recv_timeout(INTERVAL) {
                    Ok(wish) => Some(wish),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                let samples: Vec<Sample> = gpus
                    .iter()
                    .filter_map(|&index| Some(look(index, &nvml.device_by_index(index as u32).ok()?)))
                    .collect();
                let xids = events.as_ref().map_or_else(|_| vec![], |events| told(events, &nvml, &gpus));
                let mut seen = to.lock().unwrap_or_else(PoisonError::into_inner);
                seen.samples.extend(samples);
                let old = seen.samples.len().saturating_sub(KEPT * gpus.len());
                seen.samples.drain(..old);
                seen.xids.extend(xids);
                drop(seen);
                // Whoever has wished may have given up.
                wish.map(|wish| wish.send(()));
            }
        })?;
        Ok(Self { seen, wishes })
    }

    /// As [`take`](Self::take), after a look at once, for which it waits no longer than `limit`: an error that a rank has just died of
    /// is among it.
    pub fn take_now(&self, limit: Duration) -> Looks {
        let (wish, done) = mpsc::channel();
        if self.wishes.send(wish).is_ok() {
            // A driver that does not answer now is not waited for.
            let _ = done.recv_timeout(limit);
        }
        self.take()
    }

    /// What has been seen since the last call.
    pub fn take(&self) -> Looks {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Asks the driver to tell of errors. Some GPUs cannot.
fn register<'nvml>(nvml: &'nvml Nvml, gpus: &[usize]) -> Result<EventSet<'nvml>, NvmlError> {
    let mut events = nvml.create_event_set()?;
    for &index in gpus {
        let device = nvml.device_by_index(index as u32)?;
        events = device.register_events(EventTypes::CRITICAL_XID_ERROR, events).map_err(|error| error.error)?;
    }
    Ok(events)
}

/// The errors that the driver has told of, without waiting for more.
fn told(events: &EventSet<'_>, nvml: &Nvml, gpus: &[usize]) -> Vec<Xid> {
    let mut xids = vec![];
    while let Ok(event) = events.wait(0) {
        let Some(xid) = event.event_data else { continue };
        let uuid = event.device.uuid().ok();
        let is_it = |&&index: &&usize| {
            uuid.is_some() && nvml.device_by_index(index as u32).and_then(|device| device.uuid()).ok() == uuid
        };
        let number = match xid {
            XidError::Value(number) => Some(number),
            XidError::Unknown => None,
        };
        xids.extend(gpus.iter().find(is_it).map(|&gpu| Xid { gpu, number }));
    }
    xids
}

fn look(gpu: usize, device: &Device<'_>) -> Sample {
    Sample {
        gpu,
        utilization: device.utilization_rates().ok().map(|rates| rates.gpu),
        memory_used: device.memory_info().ok().map(|memory| memory.used),
        celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        watts: device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1e3),
        sm_megahertz: device.clock_info(Clock::SM).ok(),
        throttled: device.current_throttle_reasons().map_or_else(|_| vec![], throttles),
        ecc_errors: device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).ok(),
    }
}

fn throttles(reasons: ThrottleReasons) -> Vec<Throttle> {
    let thermal = ThrottleReasons::SW_THERMAL_SLOWDOWN | ThrottleReasons::HW_THERMAL_SLOWDOWN;
    let hardware = ThrottleReasons::HW_SLOWDOWN | ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN;
    let kinds = [
        (ThrottleReasons::SW_POWER_CAP, Throttle::PowerCap),
        (thermal, Throttle::Thermal),
        (hardware, Throttle::Hardware),
    ];
    kinds.into_iter().filter(|(bits, _)| reasons.intersects(*bits)).map(|(_, throttle)| throttle).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_reasons_are_of_three_kinds() {
        let all = ThrottleReasons::all();
        assert_eq!(throttles(all), [Throttle::PowerCap, Throttle::Thermal, Throttle::Hardware]);
        assert_eq!(throttles(ThrottleReasons::GPU_IDLE), []);
        assert_eq!(throttles(ThrottleReasons::HW_THERMAL_SLOWDOWN), [Throttle::Thermal]);
    }
}
