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
        let mut lost = Vec::new();
        let result = self.commit(|owner| {
            lost = owner.state.reload(&config)?;
            if config.node != owner.config.node
                && !owner.attachments.is_empty()
                && let Err(error) = owner.attach(&config)
            {
                // Some interfaces may have got the new program; the old set is what stays.
                let old = owner.config.clone();
                owner.attach_error = owner.attach(&old).err().map(|error| format!("{error:#}"));
                return Err(error);
            }
            let changed = config != owner.config;
            owner.config = config;
            let message = if changed {
                "configuration loaded"
            } else {
                "configuration loaded: it is the one in force"
            };
            Ok((message.to_owned(), changed))
        });
        if result.is_ok() {
            for loss in lost {
                tracing::warn!("a run-time change is dropped: {loss}");
            }
        }
        result
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
    if old.capacity != new.capacity {
        return refuse("[capacity]");
    }
    if old.socket != new.socket {
        return refuse("api.socket");
    }
    if old.metrics_listen != new.metrics_listen {
        return refuse("metrics.listen");
    }
    Ok(())
}
