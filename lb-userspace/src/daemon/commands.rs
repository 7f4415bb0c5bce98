//! What the control socket may ask: each command either happens wholly, or not at all.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::api::dto::{
    AdminChange, ApiError, BackendAdd, Caller, Changed, Command, ServiceAdd, WeightChange,
};
use crate::config;
use crate::dataplane::Pins;
use crate::model::{Admin, BackendSpec};
use crate::state::drain::Conditions;
use crate::state::{AdminRecord, ChangeError, Effective, Overlay, Stamp};

use super::owner::{Ending, Owner};

impl Owner {
    /// Answers one command. `Some`: the daemon is to end.
    pub(super) fn command(&mut self, command: Command) -> Option<Ending> {
        // A caller that went away does not undo what it asked for, so failed sends are ignored.
        match command {
            Command::Status(reply) => drop(reply.send(Ok(self.status()))),
            Command::Services(reply) => drop(reply.send(Ok(self.service_summaries()))),
            Command::Service { name, reply } => {
                drop(reply.send(self.service_detail(&name).ok_or_else(|| no_service(&name))));
            }
            Command::ServiceAdd { caller, add, reply } => {
                drop(reply.send(self.service_add(&caller, add)))
            }
            Command::ServiceRemove {
                caller,
                name,
                reply,
            } => drop(reply.send(self.service_remove(&caller, &name))),
            Command::Backends { service, reply } => {
                drop(reply.send(self.backends(service.as_deref())))
            }
            Command::BackendAdd {
                caller,
                service,
                add,
                reply,
            } => {
                drop(reply.send(self.backend_add(&caller, &service, &add)));
            }
            Command::BackendRemove {
                caller,
                service,
                address,
                reply,
            } => {
                drop(reply.send(self.backend_remove(&caller, &service, address)));
            }
            Command::BackendAdmin {
                caller,
                service,
                address,
                change,
                reply,
            } => {
                drop(reply.send(self.backend_admin(&caller, &service, address, change)));
            }
            Command::BackendWeight {
                caller,
                service,
                address,
                change,
                reply,
            } => {
                drop(reply.send(self.backend_weight(&caller, &service, address, &change)));
            }
            Command::Overlay(reply) => drop(reply.send(Ok(self.overlay_diff()))),
            Command::OverlayReset { caller, reply } => {
                drop(reply.send(self.overlay_reset(&caller)))
            }
            Command::Config(reply) => drop(reply.send(self.merged_file())),
            Command::Reload(reply) => {
                let result = self
                    .reload()
                    .map_err(|error| ApiError::Invalid(format!("{error:#}")));
                drop(reply.send(result));
            }
            Command::Detach(reply) => {
                let result = Pins::new(&self.config.node.pin).detach();
                let ended = result.is_ok();
                let answer = result.map(|freed| Changed {
                    message: match freed.as_slice() {
                        [] => "the data path was not attached".to_owned(),
                        names => format!(
                            "the data path is detached from {}; the daemon ends",
                            names.join(", ")
                        ),
                    },
                    changed: !freed.is_empty(),
                    ..Changed::default()
                });
                drop(reply.send(answer.map_err(|error| ApiError::Failed(format!("{error:#}")))));
                return ended.then_some(Ending::Detached);
            }
        }
        None
    }

    fn backends(
        &self,
        service: Option<&str>,
    ) -> Result<Vec<crate::api::dto::BackendDetail>, ApiError> {
        match service {
            Some(name) => Ok(self
                .service_detail(name)
                .ok_or_else(|| no_service(name))?
                .backends),
            None => Ok(self.backend_details()),
        }
    }

    fn service_add(&mut self, caller: &Caller, add: ServiceAdd) -> Result<Changed, ApiError> {
        let spec = config::parse_service(add.service)
            .map_err(|error| ApiError::Invalid(error.to_string()))?;
        let message = format!("service {:?} is added at {}", spec.name, spec.key);
        self.change(caller, message, |overlay, _, services| {
            if services.iter().any(|s| s.spec.name == spec.name) {
                return Err(ChangeError::Conflict(format!(
                    "service {:?} exists already",
                    spec.name
                )));
            }
            overlay.add_service(spec, stamp(caller))
        })
    }

    fn service_remove(&mut self, caller: &Caller, name: &str) -> Result<Changed, ApiError> {
        self.change(
            caller,
            format!("service {name:?} is removed"),
            |overlay, file, _| overlay.remove_service(name, file, stamp(caller)),
        )
    }

    fn backend_add(
        &mut self,
        caller: &Caller,
        service: &str,
        add: &BackendAdd,
    ) -> Result<Changed, ApiError> {
        let inherited = add.replaces.and_then(|old| {
            let service = self.state.service(service)?;
            service.backend(old).map(|old| old.weight)
        });
        let weight = add.weight.or(inherited).unwrap_or(1);
        check_weight(weight)?;
        if let Some(why) = config::unusable(add.address) {
            return Err(ApiError::Invalid(format!(
                "backend {} is {why}",
                add.address
            )));
        }
        let address = add.address;
        let message = match add.replaces {
            None => format!("backend {address} is added to {service:?} with weight {weight}"),
            Some(old) => format!(
                "backend {address} is added to {service:?} with weight {weight} in the place of {old}, which is removed"
            ),
        };
        self.change(caller, message, |overlay, _, services| {
            if let Some(old) = add.replaces {
                let service = find_backend(services, service, old)?;
                let old = service.backend(old).expect("it was found");
                return overlay.replace_backend(service, old, address, weight, &stamp(caller));
            }
            let service = find(services, service)?;
            overlay.add_backend(
                service,
                &BackendSpec {
                    address,
                    weight,
                    replaces: None,
                },
                stamp(caller),
            )
        })
    }

    fn backend_remove(
        &mut self,
        caller: &Caller,
        service: &str,
        address: IpAddr,
    ) -> Result<Changed, ApiError> {
        self.change(
            caller,
            format!("backend {address} is removed from {service:?}"),
            |overlay, _, services| {
                let service = find_backend(services, service, address)?;
                overlay.remove_backend(service, address, stamp(caller));
                Ok(())
            },
        )
    }

    fn backend_admin(
        &mut self,
        caller: &Caller,
        service: &str,
        address: IpAddr,
        change: AdminChange,
    ) -> Result<Changed, ApiError> {
        let until = until(&change)?;
        let old = self
            .state
            .service(service)
            .and_then(|s| s.backend(address))
            .map(|backend| backend.admin.clone())
            .filter(|old| old.admin == change.admin);
        let Stamp { by, at } = stamp(caller);
        let mut record = AdminRecord {
            admin: change.admin,
            reason: change.reason,
            by,
            at,
            until,
        };
        let mut already = false;
        if let Some(old) = old {
            already = until.is_none()
                && record
                    .reason
                    .as_ref()
                    .is_none_or(|r| Some(r) == old.reason.as_ref());
            record.reason = record.reason.or(old.reason);
            if until.is_none() && old.until.is_some() {
                // It goes on as it is: its time-out runs from when that was asked for.
                (record.until, record.at) = (old.until, old.at);
            }
        }
        let message = format!("backend {address} of {service:?} is {}", record.said());
        let mut answer = if already {
            Changed {
                message: format!("{message} already"),
                ..Changed::default()
            }
        } else {
            let answer = self.change(caller, message, |overlay, _, services| {
                overlay.set_admin(find_backend(services, service, address)?, address, record);
                Ok(())
            })?;
            // It may be over at once.
            if until.is_some() {
                self.drains.next = Some(Instant::now());
            }
            answer
        };
        if change.admin == Admin::Draining
            && let Some(about) = self.about_drain(service, address)
        {
            answer.message = format!("{}: {about}", answer.message);
        }
        Ok(answer)
    }

    fn backend_weight(
        &mut self,
        caller: &Caller,
        service: &str,
        address: IpAddr,
        change: &WeightChange,
    ) -> Result<Changed, ApiError> {
        check_weight(change.weight)?;
        let message = format!(
            "backend {address} of {service:?} has weight {}",
            change.weight
        );
        self.change(caller, message, |overlay, _, services| {
            overlay.set_weight(
                find_backend(services, service, address)?,
                address,
                change.weight,
                stamp(caller),
            );
            Ok(())
        })
    }

    fn change(
        &mut self,
        caller: &Caller,
        message: String,
        change: impl FnOnce(
            &mut Overlay,
            &[crate::model::ServiceSpec],
            &[Effective],
        ) -> Result<(), ChangeError>,
    ) -> Result<Changed, ApiError> {
        let result = self.commit(|owner| {
            let changed = owner.state.change(change)?;
            Ok((message, changed))
        });
        match result {
            Ok(answer) if answer.changed => {
                tracing::info!(user = caller.user, uid = caller.uid, "{}", answer.message);
                Ok(answer)
            }
            Ok(answer) => Ok(Changed {
                message: format!("{} already", answer.message),
                ..answer
            }),
            Err(error) => Err(refusal(error)),
        }
    }
}

/// When the drain that is asked for ends by itself.
fn until(change: &AdminChange) -> Result<Option<Conditions>, ApiError> {
    let Some(drain) = change.drain else {
        return Ok(None);
    };
    if change.admin != Admin::Draining {
        return Err(ApiError::Invalid(format!(
            "`drain` says when a drain ends, and {:?} is none: leave it out, or write \"draining\"",
            change.admin.to_string()
        )));
    }
    let conditions = Conditions {
        until_empty: drain.until_empty,
        timeout: drain.timeout_seconds.map(Duration::from_secs),
    };
    conditions
        .check()
        .map_err(|why| ApiError::Invalid(format!("`drain` {why}")))?;
    Ok(Some(conditions))
}

/// Why a commit came to nothing.
pub(super) fn refusal(error: anyhow::Error) -> ApiError {
    match error.downcast::<ChangeError>() {
        Ok(ChangeError::NotFound(text)) => ApiError::NotFound(text),
        Ok(ChangeError::Conflict(text)) => ApiError::Conflict(text),
        Ok(ChangeError::Invalid(text)) => ApiError::Invalid(text),
        Err(error) => match error.downcast::<crate::plan::PlanError>() {
            Ok(error) => ApiError::Conflict(error.to_string()),
            Err(error) => ApiError::Failed(format!("{error:#}")),
        },
    }
}

/// Who asks, and that it is now.
fn stamp(caller: &Caller) -> Stamp {
    Stamp {
        by: Some(caller.user.clone()),
        at: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .map(|t| t.as_secs()),
    }
}

fn no_service(name: &str) -> ApiError {
    ApiError::NotFound(format!(
        "there is no service {name:?}: `sluice service list` names those that are"
    ))
}

fn find<'a>(services: &'a [Effective], name: &str) -> Result<&'a Effective, ChangeError> {
    services
        .iter()
        .find(|service| service.spec.name == name)
        .ok_or_else(|| ChangeError::NotFound(no_service(name).to_string()))
}

pub(super) fn find_backend<'a>(
    services: &'a [Effective],
    name: &str,
    address: IpAddr,
) -> Result<&'a Effective, ChangeError> {
    let service = find(services, name)?;
    if service.backend(address).is_none() {
        return Err(ChangeError::NotFound(format!(
            "service {name:?} has no backend {address}: `sluice backend list {name}` names those that it has"
        )));
    }
    Ok(service)
}

fn check_weight(weight: u32) -> Result<(), ApiError> {
    if weight > BackendSpec::MAX_WEIGHT {
        return Err(ApiError::Invalid(format!(
            "weight {weight} is too large: 0 (no new flows) to {} is possible",
            BackendSpec::MAX_WEIGHT
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::dto::DrainUntil;

    #[test]
    fn conditions_are_for_drains_and_say_something() {
        let asked = |admin, until_empty, timeout_seconds| {
            let drain = DrainUntil {
                until_empty,
                timeout_seconds,
            };
            until(&AdminChange {
                admin,
                reason: None,
                drain: Some(drain),
            })
        };
        let drains = asked(Admin::Draining, true, Some(90)).unwrap().unwrap();
        assert_eq!(drains.to_string(), "until empty, for 1m 30s at most");
        for (admin, until_empty, timeout, why) in [
            (Admin::Disabled, true, None, "\"disabled\" is none"),
            (Admin::Draining, false, None, "until nothing"),
            (Admin::Draining, true, Some(0), "less than a second"),
            (Admin::Draining, false, Some(u64::MAX), "more than a year"),
        ] {
            let error = asked(admin, until_empty, timeout).unwrap_err();
            assert!(
                matches!(&error, ApiError::Invalid(text) if text.contains(why)),
                "{error}"
            );
        }
    }
}
