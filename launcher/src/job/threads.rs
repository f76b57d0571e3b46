//! What libtorch is told of a rank's threads.

use std::ffi::OsString;

use proto::env::variable;

/// How often a waiting thread of libtorch's OpenMP (GNU's) looks before it sleeps: long enough for what comes next within a step, some
/// 30 us. Without it, it looks for milliseconds.
const SPINS: &str = "3000";

/// The variable that says so.
const SPIN_COUNT: &str = "GOMP_SPINCOUNT";

/// The variables by which a user says how threads wait.
const WAIT_POLICY: [&str; 2] = [SPIN_COUNT, "OMP_WAIT_POLICY"];

/// What libtorch is to know of a rank's threads beside their number.
pub fn env_of_threads(threads: usize) -> Vec<(&'static str, Option<OsString>)> {
    let mut env = vec![("MKL_NUM_THREADS", Some(threads.to_string().into()))];
    if WAIT_POLICY.iter().all(|name| variable(name).is_none()) {
        // Threads that wait for each other sleep soon: those of another job on the same cores would else hardly ever run.
        env.push((SPIN_COUNT, Some(SPINS.into())));
    }
    env
}
