//! What `status`, `service`, `backend` and the metrics say.

use std::time::UNIX_EPOCH;

use lb_common::abi::BackendCounters;
use lb_common::event::Event;
use lb_common::reason::Reason;

use super::owner::Owner;
use crate::api::dto::{
    BackendAdmin, BackendDetail, CapacityUse, InterfaceStatus, ReasonCount, ServiceDetail,
    ServiceSummary, Status,
};
use crate::dataplane::DataPlane as _;
use crate::metrics::{
    BackendSample, Declared, ProbeSample, ReasonSample, SlotSample, Snapshot, TableDigest,
};
use crate::model::{Health, HealthSpec, ProbeKind};
use crate::netlink::NextHopState;
use crate::plan::InstalledService;
use crate::state::{Effective, EffectiveBackend, eligibility};

/// The reason of the verdict "forward".
const FORWARDED: (&str, &str, &str) = ("forward", "forwarded", "Sent to a backend.");

/// Where the counters of cleared backends are summed up.
const RETIRED: u32 = 0;

impl Owner {
    pub(super) fn status(&self) -> Status {
        let not_ready = self.not_ready();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            config: self.config_path.display().to_string(),
            config_loaded_at: self
                .config_loaded
                .duration_since(UNIX_EPOCH)
                .map_or(0, |t| t.as_secs()),
            config_error: self.config_error.clone(),
            ready: not_ready.is_empty(),
            not_ready,
            interfaces: self.interfaces(),
            services: self.service_summaries(),
            tracking: self.tracking_status(),
            packets: self
                .reasons()
                .into_iter()
                .filter(|row| row.packets > 0)
                .collect(),
            capacity: vec![
                CapacityUse {
                    what: "services".to_owned(),
                    used: self.installed.services.len() as u64,
                    limit: self.installed.capacity.services.into(),
                },
                CapacityUse {
                    what: "backends".to_owned(),
                    used: self.installed.backends_used(),
                    limit: self.installed.capacity.backends.into(),
                },
                CapacityUse {
                    what: "slots".to_owned(),
                    used: self.installed.slots_used(),
                    limit: self.installed.capacity.slots.into(),
                },
            ],
        }
    }

    fn interfaces(&self) -> Vec<InterfaceStatus> {
        let asked = self.config.node.xdp_mode;
        let status = |name: &String| match self
            .attachments
            .iter()
            .find(|a| a.interface == *name && a.stands())
        {
            Some(attachment) => InterfaceStatus {
                name: name.clone(),
                ifindex: attachment.ifindex,
                asked,
                got: Some(attachment.got),
                note: attachment.note.clone(),
            },
            None => InterfaceStatus {
                name: name.clone(),
                ifindex: nix::net::if_::if_nametoindex(name.as_str()).unwrap_or(0),
                asked,
                got: None,
                note: Some(
                    self.attach_error
                        .clone()
                        .unwrap_or_else(|| "not attached yet".to_owned()),
                ),
            },
        };
        self.config.node.interfaces.iter().map(status).collect()
    }

    /// Every reason, zero or not, the forwarded packets first.
    fn reasons(&self) -> Vec<ReasonCount> {
        let mut forwarded = self.plane.backend_counters(RETIRED).packets;
        for service in self.installed.services.values() {
            forwarded += service
                .backends
                .values()
                .map(|b| self.plane.backend_counters(b.id).packets)
                .sum::<u64>();
        }
        let (verdict, reason, help) = FORWARDED;
        let row = |verdict: &str, reason: &str, help: &str, packets| ReasonCount {
            verdict: verdict.to_owned(),
            reason: reason.to_owned(),
            packets,
            help: help.to_owned(),
        };
        let mut rows = vec![row(verdict, reason, help, forwarded)];
        rows.extend(Reason::ALL.iter().map(|r| {
            row(
                r.fate().name(),
                r.name(),
                r.help(),
                self.plane.reason_counter(*r),
            )
        }));
        rows
    }

    pub(super) fn service_summaries(&self) -> Vec<ServiceSummary> {
        self.state
            .services()
            .iter()
            .map(|service| self.summary(service))
            .collect()
    }

    pub(super) fn backend_details(&self) -> Vec<BackendDetail> {
        self.state
            .services()
            .iter()
            .flat_map(|service| self.details(service))
            .collect()
    }

    pub(super) fn service_detail(&self, name: &str) -> Option<ServiceDetail> {
        let service = self.state.service(name)?;
        Some(ServiceDetail {
            summary: self.summary(service),
            affinity: service.spec.affinity,
            tracking: service.spec.tracking,
            flow_idle_seconds: service.spec.times.flow_idle.as_secs_f64(),
            grace_seconds: service.spec.times.grace.as_secs_f64(),
            hold_down_seconds: service.spec.times.hold_down.as_secs_f64(),
            linger_seconds: service.spec.times.linger.as_secs_f64(),
            on_empty: service.spec.on_empty,
            health: describe(&service.spec.health, service.spec.key.port),
            table_digest: self
                .installed(service)
                .and_then(InstalledService::digest)
                .map(|d| format!("{d:016x}")),
            backends: self.details(service),
        })
    }

    fn installed(&self, service: &Effective) -> Option<&InstalledService> {
        self.installed
            .services
            .get(&service.spec.key)
            .map(AsRef::as_ref)
    }

    fn summary(&self, service: &Effective) -> ServiceSummary {
        let spec = &service.spec;
        let installed = self.installed(service);
        let mut total = BackendCounters::default();
        for backend in installed.iter().flat_map(|s| s.backends.values()) {
            let counters = self.plane.backend_counters(backend.id);
            total.packets += counters.packets;
            total.bytes += counters.bytes;
            total.flows += counters.flows;
        }
        let vip = spec.key.to_string();
        ServiceSummary {
            name: spec.name.clone(),
            vip: vip
                .rsplit_once('/')
                .map_or(vip.clone(), |(vip, _)| vip.to_owned()),
            protocol: spec.key.protocol,
            forward: spec.forward,
            backends: service.backends.len() as u32,
            eligible: service
                .backends
                .iter()
                .filter(|b| self.eligibility(service, b).is_ok())
                .count() as u32,
            table_size: installed.map_or(0, |s| s.size),
            slot_modes: installed.map(|s| self.slot_modes(s)).unwrap_or_default(),
            packets: total.packets,
            bytes: total.bytes,
            flows: total.flows,
            origin: service.origin.name().to_owned(),
        }
    }

    fn eligibility(&self, service: &Effective, backend: &EffectiveBackend) -> Result<(), String> {
        let observed = self.state.observed(&service.spec.name, backend.address);
        eligibility(
            self.state.node(),
            &service.spec,
            backend,
            observed,
            self.state.next_hop(backend.address),
        )
    }

    fn details(&self, service: &Effective) -> Vec<BackendDetail> {
        let installed = self.installed(service);
        let unlearnt = installed.map(|s| self.unlearnt(s)).unwrap_or_default();
        let detail = |backend: &EffectiveBackend| {
            let id = installed
                .and_then(|s| s.backends.get(&backend.address))
                .map_or(0, |b| b.id);
            let counters = self.plane.backend_counters(id);
            let observed = self.state.observed(&service.spec.name, backend.address);
            let eligible = self.eligibility(service, backend);
            BackendDetail {
                service: service.spec.name.clone(),
                address: backend.address,
                replaces: (backend.identity != backend.address).then_some(backend.identity),
                id,
                weight: backend.weight,
                admin: backend.admin.admin.into(),
                admin_reason: backend.admin.reason.clone(),
                admin_by: backend.admin.by.clone(),
                admin_at: backend.admin.at,
                drain: self.drain_status(service, backend),
                forgotten_in_seconds: None,
                health: observed.map_or(Health::Unknown, |o| o.health),
                health_reason: observed.map(|o| o.reason.clone()),
                health_since_seconds: observed.map(|o| o.since.elapsed().as_secs()),
                eligible: eligible.is_ok(),
                not_eligible: eligible.err(),
                next_hop: self.state.next_hop(backend.address).map(next_hop),
                slots: installed.map_or(0, |s| s.slots_of(backend.address)),
                flows_remembered: self.remembered(id),
                slots_unlearnt: installed
                    .map_or(0, |s| Self::slots_unlearnt(s, &unlearnt, backend.address)),
                packets: counters.packets,
                bytes: counters.bytes,
                flows: counters.flows,
                origin: backend.origin.name().to_owned(),
            }
        };
        let mut details: Vec<_> = service.backends.iter().map(detail).collect();
        if let Some(installed) = installed {
            details.extend(self.removed(service, installed, &unlearnt));
        }
        details
    }

    /// Everything the metrics say, as it is now.
    pub(super) fn snapshot(&self) -> Snapshot {
        let statistics: std::collections::HashMap<_, _> = self
            .prober
            .statistics()
            .into_iter()
            .map(|s| (s.target.clone(), s))
            .collect();
        let mut probes = Vec::new();
        for (target, backends) in &self.targets {
            let Some(statistics) = statistics.get(target) else {
                continue;
            };
            if target.kind == ProbeKind::None {
                continue;
            }
            probes.extend(backends.iter().map(|(service, backend)| ProbeSample {
                service: service.clone(),
                backend: *backend,
                stats: statistics.clone(),
            }));
        }
        let mut backends = Vec::new();
        let mut table_digests = Vec::new();
        let mut slots = Vec::new();
        for service in self.state.services() {
            for backend in self.details(service) {
                backends.push(BackendSample {
                    service: backend.service,
                    address: backend.address,
                    packets: backend.packets,
                    bytes: backend.bytes,
                    flows: backend.flows,
                    declared: (backend.admin != BackendAdmin::Removed).then_some(Declared {
                        up: backend.health == Health::Up,
                        weight: backend.weight,
                    }),
                });
            }
            let Some(installed) = self.installed(service) else {
                continue;
            };
            if let Some(digest) = installed.digest() {
                table_digests.push(TableDigest {
                    service: service.spec.name.clone(),
                    digest: format!("{digest:016x}"),
                });
            }
            let modes = self.modes(installed);
            for (mode, slots_in_mode) in ["steady", "learn", "residue"].into_iter().zip(modes) {
                slots.push(SlotSample {
                    service: service.spec.name.clone(),
                    mode: mode.to_owned(),
                    slots: slots_in_mode,
                });
            }
        }
        let entries = self.flow_entries();
        Snapshot {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            backends,
            reasons: self
                .reasons()
                .into_iter()
                .map(|row| ReasonSample {
                    verdict: row.verdict,
                    reason: row.reason,
                    packets: row.packets,
                })
                .collect(),
            probes,
            table_digests,
            slots,
            flow_entries: vec![
                ("syn", entries.syn),
                ("learnt", entries.learnt),
                ("established", entries.established),
                ("closed", entries.closed),
            ],
            events: Event::ALL
                .iter()
                .map(|event| (*event, self.plane.event_counter(*event)))
                .collect(),
            table_changes: self.table_changes,
        }
    }
}

pub(super) fn next_hop(state: &NextHopState) -> String {
    match state {
        NextHopState::Resolved(hop) => {
            let mac = hop
                .destination_mac
                .map(|byte| format!("{byte:02x}"))
                .join(":");
            format!("{} via {mac}, mtu {}", hop.interface, hop.mtu)
        }
        NextHopState::Unresolved(why) => format!("unknown: {why}"),
    }
}

/// One line about how a service's backends are probed.
fn describe(health: &HealthSpec, service_port: u16) -> String {
    let port = if health.port == 0 {
        service_port
    } else {
        health.port
    };
    let what = match &health.kind {
        ProbeKind::None => return "none".to_owned(),
        ProbeKind::Tcp => "tcp connect".to_owned(),
        ProbeKind::Http { path, .. } => format!("http GET {path}"),
    };
    format!(
        "{what} port {port} every {}, timeout {}, rise {}, fall {}",
        humantime::format_duration(health.interval),
        humantime::format_duration(health.timeout),
        health.rise,
        health.fall
    )
}
