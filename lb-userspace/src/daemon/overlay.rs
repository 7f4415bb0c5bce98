//! What differs from the file: taken up at the start, shown, dropped, written out.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;

use super::commands::refusal;
use super::owner::Owner;
use super::store::Store;
use crate::api::dto::{ApiError, Caller, Difference, DifferenceKind, OverlayDiff, OverlayReset};
use crate::config;
use crate::model::Config;
use crate::state::{self, Change, Effective, State};

/// What a daemon begins with.
pub struct Restored {
    pub state: State,
    pub store: Store,
}

/// The file with the run-time changes of earlier daemons upon it. What the file leaves no place for is dropped, one by one and
/// said so; it keeps nobody from starting.
pub fn restore(config: &Config, mut store: Store) -> Result<Restored> {
    let (state, lost) = State::restore(config, store.load()?);
    for loss in &lost {
        tracing::warn!("a run-time change is dropped: {loss}");
    }
    if !lost.is_empty() {
        match store.keep_former() {
            Ok(former) => tracing::warn!(
                "the run-time changes as they were are kept in {}",
                former.display()
            ),
            // Then they stay where they are: the next start drops them again.
            Err(error) => {
                tracing::warn!("{error:#}");
                return Ok(Restored { state, store });
            }
        }
    }
    if let Err(error) = store.save(state.overlay()) {
        tracing::warn!("{error:#}");
    }
    match state.differences().len() {
        0 => {}
        n => tracing::info!(
            "{} {} upon the file: `sluice diff` lists them",
            store.path().display(),
            if n == 1 {
                "has 1 run-time change, which holds".to_owned()
            } else {
                format!("has {n} run-time changes, which hold")
            }
        ),
    }
    Ok(Restored { state, store })
}

impl Owner {
    pub(super) fn overlay_diff(&self) -> OverlayDiff {
        OverlayDiff {
            config: self.config_path.display().to_string(),
            store: self.store.path().display().to_string(),
            differences: rows(self.state.differences()),
        }
    }

    /// Drops every run-time change; the file alone holds then.
    pub(super) fn overlay_reset(&mut self, caller: &Caller) -> Result<OverlayReset, ApiError> {
        let mut dropped = Vec::new();
        let changed = self
            .commit(|owner| {
                let changed = !owner.state.overlay().is_empty();
                dropped = owner.state.reset();
                let message = match dropped.len() {
                    0 => "nothing differs from the file".to_owned(),
                    1 => "1 run-time change is dropped: the file alone holds".to_owned(),
                    n => format!("{n} run-time changes are dropped: the file alone holds"),
                };
                Ok((message, changed))
            })
            .map_err(refusal)?;
        if changed.changed {
            tracing::info!(user = caller.user, uid = caller.uid, "{}", changed.message);
        }
        for difference in &dropped {
            tracing::info!("dropped: {}", sentence(difference));
        }
        Ok(OverlayReset {
            changed,
            dropped: rows(dropped),
        })
    }

    /// The file that would make the run-time changes unnecessary, as text.
    pub(super) fn merged_file(&self) -> Result<String, ApiError> {
        let config = Config {
            services: self
                .state
                .services()
                .iter()
                .map(Effective::folded)
                .collect(),
            ..self.config.clone()
        };
        let toml = config::to_toml(&config)
            .map_err(|error| ApiError::Failed(format!("the configuration as TOML: {error}")))?;
        let unsaved: Vec<_> = self
            .state
            .differences()
            .into_iter()
            .filter(|difference| difference.change == Change::Admin)
            .collect();
        // A comment must stay one whatever stands in paths and reasons.
        let path = self.config_path.display().to_string();
        let mut text = format!(
            "# By sluice {}: {} with the run-time changes upon it.\n\
             # Comments are lost, and defaults of the node are written out.\n",
            env!("CARGO_PKG_VERSION"),
            path.escape_debug()
        );
        if !unsaved.is_empty() {
            text.push_str(
                "# Not saved, because no key of the file says it; it stays a run-time change:\n",
            );
        }
        for difference in &unsaved {
            // Writing into a string cannot fail.
            let _ = writeln!(text, "#   {}", sentence(difference).escape_debug());
        }
        Ok(text + "\n" + &toml)
    }
}

fn rows(differences: Vec<state::Difference>) -> Vec<Difference> {
    let row = |difference: state::Difference| Difference {
        kind: match difference.change {
            Change::ServiceAdded => DifferenceKind::ServiceAdded,
            Change::ServiceRemoved => DifferenceKind::ServiceRemoved,
            Change::BackendAdded => DifferenceKind::BackendAdded,
            Change::BackendRemoved => DifferenceKind::BackendRemoved,
            Change::Place => DifferenceKind::Place,
            Change::Weight => DifferenceKind::Weight,
            Change::Admin => DifferenceKind::Admin,
        },
        service: difference.service,
        backend: difference.backend,
        file: difference.file,
        now: difference.now,
        reason: difference.reason,
        by: difference.stamp.by,
        at: difference.stamp.at,
    };
    differences.into_iter().map(row).collect()
}

/// `backend 10.0.0.12 of web: active → draining (kernel update), by alice at 2025-10-09T09:01:40Z`
fn sentence(difference: &state::Difference) -> String {
    let mut text = match difference.backend {
        Some(address) => format!("backend {address} of {}: ", difference.service),
        None => format!("service {}: ", difference.service),
    };
    let side = |side: &Option<String>| side.clone().unwrap_or_else(|| "none".to_owned());
    let (file, now) = (side(&difference.file), side(&difference.now));
    let _ = write!(text, "{file} → {now}");
    if let Some(reason) = &difference.reason {
        let _ = write!(text, " ({reason})");
    }
    if let Some(by) = &difference.stamp.by {
        let _ = write!(text, ", by {by}");
    }
    if let Some(at) = difference.stamp.at {
        let at = UNIX_EPOCH + Duration::from_secs(at);
        let _ = write!(text, " at {}", humantime::format_rfc3339_seconds(at));
    }
    text
}
