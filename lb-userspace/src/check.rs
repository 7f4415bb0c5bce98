//! `sluice check`: what of this host would keep traffic from flowing, each finding with its mend.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Ok,
    Warning,
    Error,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub severity: Severity,
    /// What was looked at, for example `eth0: driver`, `backend 10.0.0.11 of web: next hop`.
    pub what: String,
    /// What was found.
    pub found: String,
    /// The command or setting that mends it; empty when nothing is wrong.
    pub mend: String,
}

/// Placeholder: the host's checks replace this.
pub async fn run(config: &crate::model::Config) -> Vec<Finding> {
    vec![Finding {
        severity: Severity::Ok,
        what: "configuration".to_owned(),
        found: format!("{} services", config.services.len()),
        mend: String::new(),
    }]
}
