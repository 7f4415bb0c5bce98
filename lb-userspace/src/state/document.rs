//! The overlay as a document: versioned JSON that a person can read, and mend.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::drain::Conditions;
use super::overlay::{AddedService, AdminRecord, BackendChange, Overlay, Presence, Stamp};
use crate::config;
use crate::model::{Admin, BackendSpec};

/// What this version writes, and the only format it reads.
pub const FORMAT: u32 = 1;

/// 9999-12-31T23:59:59Z: RFC 3339 has four digits for the year.
const LAST_MOMENT: u64 = 253_402_300_799;

/// Why a document is no overlay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    #[error("line {line}, column {column}: {what}")]
    Syntax {
        line: usize,
        column: usize,
        what: String,
    },
    #[error("it has format {0}, and this version reads format {FORMAT}")]
    Format(u64),
    #[error("{0}")]
    Entry(String),
}

impl From<serde_json::Error> for DocumentError {
    fn from(error: serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        let what = error.to_string();
        // serde_json ends its messages with the place, which stands in front here.
        let place = format!(" at line {line} column {column}");
        Self::Syntax {
            line,
            column,
            what: what.strip_suffix(&place).unwrap_or(&what).to_owned(),
        }
    }
}

/// Read first: another format may have anything beside it.
#[derive(Deserialize)]
struct AnyFormat {
    format: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    services_added: Vec<ServiceAdded>,
    services_removed: Vec<ServiceRemoved>,
    backends: Vec<Backend>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Who {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "moment")]
    at: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceAdded {
    /// As a `[[service]]` of sluice.toml.
    service: serde_json::Value,
    added: Who,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceRemoved {
    service: String,
    removed: Who,
}

/// What was said of one backend; at least one of the options.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Backend {
    service: String,
    address: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    added: Option<Weight>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    removed: Option<Who>,
    /// Whose place in the lookup table it has; absent: as declared, or its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaces: Option<Place>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<Weight>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    admin: Option<State>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Weight {
    weight: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "moment")]
    at: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    identity: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "moment")]
    at: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    state: Admin,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Until>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "moment")]
    at: Option<u64>,
}

/// When a drain ends by itself; at least one of the two.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Until {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    empty: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_seconds: Option<u64>,
}

impl Overlay {
    pub fn to_document(&self) -> String {
        let document = Document {
            format: FORMAT,
            services_added: self
                .added
                .values()
                .map(|added| ServiceAdded {
                    service: config::service_to_json(&added.spec),
                    added: (&added.stamp).into(),
                })
                .collect(),
            services_removed: self
                .removed
                .iter()
                .map(|(service, stamp)| ServiceRemoved {
                    service: service.clone(),
                    removed: stamp.into(),
                })
                .collect(),
            backends: self
                .backends
                .iter()
                .map(|((service, address), change)| backend(service, *address, change))
                .collect(),
        };
        let text = serde_json::to_string_pretty(&document);
        text.expect("strings, numbers and lists have a JSON form") + "\n"
    }

    /// # Errors
    /// Whatever this version would not have written: part of what operators said must not get lost.
    pub fn from_document(text: &str) -> Result<Self, DocumentError> {
        let AnyFormat { format } = serde_json::from_str(text)?;
        if format != u64::from(FORMAT) {
            return Err(DocumentError::Format(format));
        }
        let document: Document = serde_json::from_str(text)?;
        let mut overlay = Self::default();
        for ServiceAdded { service, added } in document.services_added {
            let spec = config::parse_service(service)
                .map_err(|error| DocumentError::Entry(format!("services_added: {error}")))?;
            let name = spec.name.clone();
            let stamp = added.into();
            let twice = overlay
                .added
                .insert(name.clone(), AddedService { spec, stamp });
            once(twice.is_none(), || format!("services_added has {name:?}"))?;
        }
        for ServiceRemoved { service, removed } in document.services_removed {
            let twice = overlay.removed.insert(service.clone(), removed.into());
            once(twice.is_none(), || {
                format!("services_removed has {service:?}")
            })?;
        }
        for entry in document.backends {
            let key = (entry.service.clone(), entry.address);
            let twice = overlay.backends.insert(key, change(entry)?);
            once(twice.is_none(), || "backends has one".to_owned())?;
        }
        Ok(overlay)
    }
}

fn once(once: bool, what: impl FnOnce() -> String) -> Result<(), DocumentError> {
    if once {
        return Ok(());
    }
    Err(DocumentError::Entry(format!("{} twice", what())))
}

fn backend(service: &str, address: IpAddr, change: &BackendChange) -> Backend {
    let weigh = |weight: u32, stamp: &Stamp| Weight {
        weight,
        by: stamp.by.clone(),
        at: stamp.at,
    };
    Backend {
        service: service.to_owned(),
        address,
        added: match &change.presence {
            Presence::Added { weight, stamp } => Some(weigh(*weight, stamp)),
            _ => None,
        },
        removed: match &change.presence {
            Presence::Removed(stamp) => Some(stamp.into()),
            _ => None,
        },
        replaces: change.place.as_ref().map(|(identity, stamp)| Place {
            identity: *identity,
            by: stamp.by.clone(),
            at: stamp.at,
        }),
        weight: change
            .weight
            .as_ref()
            .map(|(weight, stamp)| weigh(*weight, stamp)),
        admin: change.admin.as_ref().map(|record| State {
            state: record.admin,
            until: record.until.map(|until| Until {
                empty: until.until_empty,
                timeout_seconds: until.timeout.map(|timeout| timeout.as_secs()),
            }),
            reason: record.reason.clone(),
            by: record.by.clone(),
            at: record.at,
        }),
    }
}

/// The conditions of an entry that is this `state`.
fn conditions(state: Admin, until: Until) -> Result<Conditions, &'static str> {
    let conditions = Conditions {
        until_empty: until.empty,
        timeout: until.timeout_seconds.map(Duration::from_secs),
    };
    match conditions.check() {
        _ if state != Admin::Draining => Err("is not draining, but says until when"),
        Err(why) => Err(why),
        Ok(()) => Ok(conditions),
    }
}

fn change(mut entry: Backend) -> Result<BackendChange, DocumentError> {
    let who = format!("backend {} of {:?}", entry.address, entry.service);
    let wrong = |what: &str| DocumentError::Entry(format!("{who} {what}"));
    if let Some(why) = config::unusable(entry.address) {
        return Err(wrong(&format!("is {why}")));
    }
    if let Some(place) = &entry.replaces
        && let Some(why) = config::unusable(place.identity)
    {
        return Err(wrong(&format!("replaces {}, {why}", place.identity)));
    }
    let weights = [&entry.added, &entry.weight];
    if let Some(weight) = weights
        .into_iter()
        .flatten()
        .find(|w| w.weight > BackendSpec::MAX_WEIGHT)
    {
        let (weight, most) = (weight.weight, BackendSpec::MAX_WEIGHT);
        return Err(wrong(&format!("has weight {weight}, more than {most}")));
    }
    let presence = match (entry.added, entry.removed) {
        (None, None) => Presence::Declared,
        (Some(Weight { weight, by, at }), None) => Presence::Added {
            weight,
            stamp: Stamp { by, at },
        },
        (None, Some(who))
            if entry.weight.is_none() && entry.admin.is_none() && entry.replaces.is_none() =>
        {
            Presence::Removed(who.into())
        }
        (None, Some(_)) => return Err(wrong("is removed and has a weight, state or place")),
        (Some(_), Some(_)) => return Err(wrong("is both added and removed")),
    };
    let until = match &mut entry.admin {
        Some(state) => state
            .until
            .take()
            .map(|until| conditions(state.state, until)),
        None => None,
    };
    let until = until.transpose().map_err(wrong)?;
    Ok(BackendChange {
        presence,
        place: entry
            .replaces
            .map(|Place { identity, by, at }| (identity, Stamp { by, at })),
        weight: entry
            .weight
            .map(|Weight { weight, by, at }| (weight, Stamp { by, at })),
        admin: entry.admin.map(|state| AdminRecord {
            admin: state.state,
            reason: state.reason,
            by: state.by,
            at: state.at,
            until,
        }),
    })
}

impl From<&Stamp> for Who {
    fn from(stamp: &Stamp) -> Self {
        Self {
            by: stamp.by.clone(),
            at: stamp.at,
        }
    }
}

impl From<Who> for Stamp {
    fn from(Who { by, at }: Who) -> Self {
        Self { by, at }
    }
}

/// Seconds since the Unix epoch as `2025-10-09T08:53:20Z`.
mod moment {
    use serde::de::{Deserializer, Error};
    use serde::ser::Serializer;

    use super::*;

    pub fn serialize<S: Serializer>(at: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        let text = at.map(|seconds| {
            let at = UNIX_EPOCH + Duration::from_secs(seconds.min(LAST_MOMENT));
            humantime::format_rfc3339_seconds(at).to_string()
        });
        text.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<u64>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else {
            return Ok(None);
        };
        let at: SystemTime = humantime::parse_rfc3339(&text).map_err(|_| {
            D::Error::custom(format!(
                "{text:?} is no time; write one like \"2025-10-09T08:53:20Z\""
            ))
        })?;
        at.duration_since(UNIX_EPOCH)
            .map(|since| Some(since.as_secs()))
            .map_err(D::Error::custom)
    }
}
