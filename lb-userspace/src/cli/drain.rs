//! `sluice backend drain`: asks for it, and waits for the end of one that ends by itself.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::backend::{self, Backend, Reason};
use super::output::{self, duration};
use super::{Failure, wait};
use crate::api::client::{Client, ClientError};
use crate::api::dto::{
    AdminChange, BackendAdmin, BackendDetail, Changed, DrainStatus, DrainUntil, Drained,
};
use crate::model::Admin;
use crate::state::drain::Conditions;

/// Between two looks at the backend.
const LOOK: Duration = Duration::from_secs(1);
/// Between two lines where lines cannot be rewritten.
const LINE: Duration = Duration::from_secs(4);
/// A daemon that restarts is waited for so long.
const AWAY: Duration = Duration::from_secs(60);
/// Who ends drains.
const DAEMON: &str = "sluice";

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice backend drain web 10.0.0.12 --reason 'kernel update'
  sluice backend drain web 10.0.0.12 --until-empty --timeout 2h   Until its last flow has ended, for 2 hours at most
  sluice backend drain web 10.0.0.12 --timeout 10m --no-wait      Come back later: the drain ends by itself")]
pub struct DrainArgs {
    #[command(flatten)]
    backend: Backend,
    #[command(flatten)]
    reason: Reason,
    #[command(flatten)]
    until: Until,
    /// Return at once; the drain ends by itself all the same
    #[arg(long, requires = "until")]
    no_wait: bool,
}

#[derive(Debug, Args)]
#[group(id = "until", multiple = true)]
struct Until {
    /// End the drain when none of the backend's flows is left: it is disabled then
    ///
    /// That takes at least as long as an open flow may be silent (flow_idle): until then a flow may be left that nobody has
    /// seen since the drain began.
    #[arg(long)]
    until_empty: bool,
    /// End the drain after this, for example 10m or 2h: the backend is disabled then, and flows that are left go elsewhere
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
    timeout: Option<u64>,
}

/// Whole seconds, a part of one counted whole.
fn timeout(text: &str) -> Result<u64, String> {
    let timeout = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write for example 10m or 2h"))?;
    if timeout.is_zero() || timeout > Conditions::LONGEST {
        return Err("from 1s to 365days is possible".to_owned());
    }
    Ok(timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0))
}

pub fn run(args: DrainArgs, client: &Client, json: bool) -> Result<(), Failure> {
    let DrainArgs {
        backend,
        reason,
        until,
        no_wait,
    } = args;
    let drain = DrainUntil {
        until_empty: until.until_empty,
        timeout_seconds: until.timeout,
    };
    let ends = drain != DrainUntil::default();
    let change = AdminChange {
        admin: Admin::Draining,
        reason: reason.reason,
        drain: ends.then_some(drain),
    };
    let changed = wait(client.backend_admin(&backend.service, backend.address, &change))??;
    if !ends || no_wait {
        return output::print_changed(&changed, json);
    }
    if !json {
        output::print_changed(&changed, false)?;
    }
    let last = wait(watch(client, &backend, Progress::new(json)))??;
    finish(&backend, changed, last, json)
}

/// Shows the backend until it drains no more, or nobody wants to see it any longer.
async fn watch(
    client: &Client,
    backend: &Backend,
    mut progress: Progress,
) -> Result<BackendDetail, Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).context("Ctrl-C cannot be watched for")?;
    let watched = tokio::select! {
        watched = look(client, backend, &mut progress) => watched,
        _ = interrupt.recv() => {
            let Backend { service, address } = backend;
            Err(anyhow!(
                "not waited for: the drain goes on, and ends by itself. `sluice backend list {service}` shows it, \
                 `sluice backend activate {service} {address}` cancels it"
            )
            .into())
        }
    };
    progress.end()?;
    watched
}

async fn look(
    client: &Client,
    Backend { service, address }: &Backend,
    progress: &mut Progress,
) -> Result<BackendDetail, Failure> {
    let mut answered = Instant::now();
    loop {
        match client.backends(Some(service)).await {
            Ok(backends) => {
                answered = Instant::now();
                let found = backends.into_iter().find(|b| b.address == *address);
                let found = found.with_context(|| {
                    format!("the drain was cut short: service {service:?} has no backend {address} any more")
                })?;
                if found.admin != BackendAdmin::Draining {
                    return Ok(found);
                }
                progress.show(&describe(&found))?;
            }
            // It is being restarted, perhaps upgraded: the drain goes on with the next one.
            Err(ClientError::Unreachable { .. } | ClientError::Answer { .. })
                if answered.elapsed() < AWAY =>
            {
                progress.show("the daemon does not answer just now")?;
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// `≥ 3 flows left; ends when empty, in 9m 50s at the latest`
fn describe(found: &BackendDetail) -> String {
    let left = backend::left(found);
    match &found.drain {
        Some(drain) => format!("{left} flows left; {}", ends(drain)),
        None => format!("{left} flows left"),
    }
}

/// When a drain ends by itself.
pub fn ends(drain: &DrainStatus) -> String {
    let left = drain.ends_in_seconds.map(duration);
    match (drain.until_empty, left) {
        (true, Some(left)) => format!("ends when empty, in {left} at the latest"),
        (false, Some(left)) => format!("ends in {left}"),
        (_, None) => "ends when empty".to_owned(),
    }
}

fn finish(
    backend: &Backend,
    changed: Changed,
    last: BackendDetail,
    json: bool,
) -> Result<(), Failure> {
    let by = last.admin_by.as_deref();
    let reason = last.admin_reason.as_deref().unwrap_or_default();
    let ended = last.admin == BackendAdmin::Disabled && by == Some(DAEMON);
    let Backend { service, address } = backend;
    let message = if ended {
        format!("backend {address} of {service:?} is disabled: {reason}")
    } else {
        let by = by.map_or(String::new(), |by| format!(", by {by}"));
        format!(
            "the drain was cut short: backend {address} of {service:?} is {}{by}",
            last.admin
        )
    };
    if !ended {
        return Err(anyhow!(message).into());
    }
    if json {
        return output::print_json(&Drained {
            changed: Changed { message, ..changed },
            backend: last,
        });
    }
    output::print(&(message + "\n"))
}

/// How many flows are left, for whoever watches: one line that is rewritten, or lines now and then.
struct Progress {
    silent: bool,
    terminal: bool,
    shown: Option<Instant>,
}

impl Progress {
    fn new(silent: bool) -> Self {
        Self {
            silent,
            terminal: io::stdout().is_terminal(),
            shown: None,
        }
    }

    fn show(&mut self, text: &str) -> Result<(), Failure> {
        let recently = self.shown.is_some_and(|shown| shown.elapsed() < LINE);
        if self.silent || (recently && !self.terminal) {
            return Ok(());
        }
        self.shown = Some(Instant::now());
        if self.terminal {
            // To the line's beginning, and what is longer of the last text is cleared.
            output::print(&format!("\r{text}\x1b[K"))
        } else {
            output::print(&format!("{text}\n"))
        }
    }

    /// Leaves the line that is rewritten.
    fn end(&mut self) -> Result<(), Failure> {
        match self.shown.take() {
            Some(_) if self.terminal => output::print("\n"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_outs_are_whole_seconds() {
        assert_eq!(timeout("1s"), Ok(1));
        assert_eq!(timeout("1ms"), Ok(1));
        assert_eq!(timeout("2h 1500ms"), Ok(7_202));
        for bad in ["0s", "10", "366days", "soon"] {
            assert!(timeout(bad).is_err(), "{bad}");
        }
    }
}
