//! Waiting for something to become true, with an end.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a predicate is asked.
const POLL: Duration = Duration::from_millis(5);

/// Polls until `predicate` gives a value. An error inside the predicate counts as "not yet" and is shown at the end.
pub fn wait_for<T>(
    what: &str,
    timeout: Duration,
    mut predicate: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        let last = match predicate() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if started.elapsed() > timeout {
            match last {
                Some(error) => {
                    return Err(error.context(format!("waited {timeout:?} in vain for: {what}")));
                }
                None => bail!("waited {timeout:?} in vain for: {what}"),
            }
        }
        std::thread::sleep(POLL);
    }
}

/// Polls until `predicate` is true. Returns how long that took.
pub fn wait_until(
    what: &str,
    timeout: Duration,
    mut predicate: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let started = Instant::now();
    wait_for(what, timeout, || Ok(predicate()?.then_some(())))?;
    Ok(started.elapsed())
}
