//! Reading the file again: validate, plan, apply; on any error the old state keeps running.

use std::time::SystemTime;

use anyhow::Result;

use super::owner::Owner;
use crate::api::dto::Changed;
use crate::config;
use crate::model::Config;

impl Owner {
    /// Reads the file again. On any error the old state keeps running.
    pub(super) fn reload(&mut self) -> Result<Changed> {
        match self.try_reload() {
            Ok(changed) => {
                self.config_error = None;
                self.config_loaded = SystemTime::now();
                tracing::info!("{}", changed.message);
                Ok(changed)
            }
            Err(error) => {
                let text = format!("{error:#}");
                tracing::error!(
                    "{} is refused, the older configuration stays in force:\n{text}",
                    self.config_path.display()
                );
                self.config_error = Some(text);
                Err(error)
            }
        }
    }

    fn try_reload(&mut self) -> Result<Changed> {
        let config = config::load(&self.config_path)?;
        unchangeable(&self.config, &config)?;
        super::require_interfaces(&config)?;
        let before = (self.state.clone(), self.config.clone());
        let mut lost = Vec::new();
        let changed = self.commit(|owner| {
            lost = owner.state.reload(&config)?;
            let changed = config != owner.config;
            owner.config = config;
            let message = if changed {
                "configuration loaded"
            } else {
                "configuration loaded: it is the one in force"
            };
            Ok((message.to_owned(), changed))
        })?;
        // Interfaces last: what can be refused without touching them has been.
        let attached = !self.attachments.is_empty();
        if attached
            && let Err(error) = self
                .attach(&self.config.clone())
                .and_then(|()| self.require_mode())
        {
            // Some interfaces may have got the program; the old set, and all else that was, is what stays.
            let (state, config) = before;
            self.roll_back(state, config, true);
            return Err(error);
        }
        for loss in lost {
            tracing::warn!("a run-time change is dropped: {loss}");
        }
        Ok(changed)
    }
}

/// Settings that are fixed while the data path is attached.
fn unchangeable(old: &Config, new: &Config) -> Result<()> {
    let refuse = |key: &str| {
        anyhow::bail!(
            "{key} cannot change while the daemon runs: put it back, or restart the daemon"
        )
    };
    if old.node.hash_seed != new.node.hash_seed {
        return refuse("node.hash_seed");
    }
    if old.node.pin != new.node.pin {
        return refuse("node.pin");
    }
    if old.node.state != new.node.state {
        return refuse("node.state");
    }
    for (key, before, after) in [
        ("services", old.capacity.services, new.capacity.services),
        ("backends", old.capacity.backends, new.capacity.backends),
        ("slots", old.capacity.slots, new.capacity.slots),
        ("flows", old.capacity.flows, new.capacity.flows),
    ] {
        if before != after {
            return refuse(&format!("capacity.{key} ({before}, now {after})"));
        }
    }
    if old.socket != new.socket {
        return refuse("api.socket");
    }
    if old.metrics_listen != new.metrics_listen {
        return refuse("metrics.listen");
    }
    Ok(())
}
