//! Waiting for the real world: the only place where this package sleeps.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

/// How long to pause between two looks: short against every deadline in use, long against the cost of a look.
const PAUSE: Duration = Duration::from_millis(25);

/// Tries `attempt` until it succeeds, and fails with its last error once `deadline` has passed. `what` is the
/// condition in words, for the failure's message.
///
/// # Errors
/// The condition did not hold in time.
pub fn eventually<T>(deadline: Duration, what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= deadline => {
                return Err(error).with_context(|| format!("not within {deadline:?}: {what}"));
            }
            Err(_) => pause(PAUSE),
        }
    }
}

/// Like [`eventually`] for a condition that has no value and no reason.
///
/// # Errors
/// The condition did not hold in time.
pub fn eventually_true(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    eventually(deadline, what, || condition().then_some(()).ok_or_else(|| anyhow!("it does not hold")))
}

/// Watches a condition for a whole `period` and fails as soon as it does not hold: for what must *stay* so.
///
/// # Errors
/// The condition's own, from the moment when it did not hold.
pub fn throughout(period: Duration, what: &str, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    loop {
        check().with_context(|| format!("after {:?} of {period:?}: {what}", start.elapsed()))?;
        if start.elapsed() >= period {
            return Ok(());
        }
        pause(PAUSE);
    }
}

/// Lets time pass: for pacing a stream of packets, never for hoping that something has happened.
pub fn pause(period: Duration) {
    std::thread::sleep(period);
}
