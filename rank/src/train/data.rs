//! Streamed rows, which the launcher prepares: a rank that waits for them says so, and looks whether its peers are still there.

use std::time::Duration;

use proto::control::Window;
use proto::progress::Phase;

use super::TrainError;
use crate::control::Control;
use crate::data::Supply;
use crate::progress::ProgressLine;
use crate::ranks::Ranks;

/// How long the launcher is asked at a time: between two questions a rank sees that another has failed.
const ASKED_FOR: Duration = Duration::from_secs(1);

/// Windows from the launcher.
pub(super) struct OfLauncher<'a> {
    pub control: &'a Control,
    pub line: &'a ProgressLine,
    pub ranks: &'a Ranks,
}

impl Supply for OfLauncher<'_> {
    type Error = TrainError;

    /// The launcher ends the job where it cannot go on preparing, so this wait ends with it.
    fn window(&self, position: u64) -> Result<Option<Window>, TrainError> {
        self.line.enter(Phase::Data);
        loop {
            match self.line.call_launcher(|| self.control.window(position, ASKED_FOR)) {
                Ok(window) => return Ok(window),
                Err(error) if error.is_late() => self.ranks.world.check()?,
                Err(error) => return Err(error.into()),
            }
        }
    }
}
