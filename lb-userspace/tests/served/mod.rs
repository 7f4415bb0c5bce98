//! A control socket for tests: the real server over a real Unix socket, answered by a small owner loop that
//! knows two services. Runs on a thread of its own, so that tests may block.

// Each test file uses its own part of this module.
#![allow(dead_code)]

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use lb_userspace::api::dto::*;
use lb_userspace::api::server;
use lb_userspace::model::{Affinity, Forward, Health, OnEmpty, Protocol, Tracking, XdpMode};
use tokio::sync::{mpsc, oneshot};

/// A served socket; ends with the value.
pub struct Served {
    directory: tempfile::TempDir,
    pub socket: PathBuf,
    /// Every changing command as the owner loop saw it.
    pub seen: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Served {
    pub fn start() -> Self {
        Self::with_status(status())
    }

    pub fn with_status(status: Status) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // Other users must reach the socket, and be refused there and not above.
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let socket = directory.path().join("run/sluice.sock");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel();
        let (bound, is_bound) = std::sync::mpsc::channel();
        let owner = Owner {
            status,
            seen: Arc::clone(&seen),
            drain: Mutex::default(),
        };
        let path = socket.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async move {
                let listener = server::bind(&path)?;
                bound.send(())?;
                let (sender, receiver) = mpsc::channel(16);
                tokio::spawn(owner.answer(receiver));
                server::serve(listener, sender, async {
                    let _ = stopped.await;
                })
                .await
            })
        });
        is_bound.recv().expect("the socket was bound");
        Self {
            directory,
            socket,
            seen,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Ends the server and waits for it.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        match self.thread.take() {
            Some(thread) => thread.join().expect("the server does not panic"),
            None => Ok(()),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let result = self.stop();
        if !std::thread::panicking() {
            result.expect("the server ended well");
        }
    }
}

/// Answers as a daemon with two services would, but keeps no change.
struct Owner {
    status: Status,
    seen: Arc<Mutex<Vec<String>>>,
    /// A drain that ends by itself, and how often it was looked at.
    drain: Mutex<Option<(IpAddr, AdminChange, u64)>>,
}

impl Owner {
    async fn answer(self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.recv().await {
            self.handle(command);
        }
    }

    fn handle(&self, command: Command) {
        match command {
            Command::Status(reply) => give(reply, Ok(self.status.clone())),
            Command::Services(reply) => give(reply, Ok(self.status.services.clone())),
            Command::Service { name, reply } => give(reply, self.service(&name)),
            Command::Backends { service, reply } => give(
                reply,
                match service {
                    None => Ok(all_backends()),
                    Some(name) => self
                        .service(&name)
                        .map(|detail| self.looked_at(detail.backends)),
                },
            ),
            Command::ServiceAdd { caller, add, reply } => {
                let text = format!("{} adds service {}", caller.user, add.service);
                let result = if add.service.get("vip").is_none() {
                    Err(ApiError::Invalid(
                        "service.vip: missing; write vip = \"203.0.113.10:80\"".to_owned(),
                    ))
                } else if add.service["name"] == "web" {
                    Err(ApiError::Conflict("service web exists".to_owned()))
                } else {
                    Ok(text)
                };
                self.change(reply, result);
            }
            Command::ServiceRemove {
                caller,
                name,
                reply,
            } => {
                let result = self
                    .service(&name)
                    .map(|_| format!("{} removes service {name}", caller.user));
                self.change(reply, result);
            }
            Command::BackendAdd {
                caller,
                service,
                add,
                reply,
            } => {
                let result = self.service(&service).map(|_| {
                    let place = add.replaces.map(|old| format!(" for {old}"));
                    format!(
                        "{} adds {} to {service}{}, weight {:?}",
                        caller.user,
                        add.address,
                        place.unwrap_or_default(),
                        add.weight
                    )
                });
                self.change(reply, result);
            }
            Command::BackendRemove {
                caller,
                service,
                address,
                reply,
            } => {
                let result = self
                    .backend(&service, address)
                    .map(|_| format!("{} removes {address} from {service}", caller.user));
                self.change(reply, result);
            }
            Command::BackendAdmin {
                caller,
                service,
                address,
                change,
                reply,
            } => {
                let result = self.backend(&service, address).map(|_| {
                    let until = match change.drain {
                        Some(drain) => format!(", until {drain:?}"),
                        None => String::new(),
                    };
                    format!(
                        "{} makes {address} of {service} {}, reason {:?}{until}",
                        caller.user, change.admin, change.reason
                    )
                });
                *self.drain.lock().unwrap() =
                    change.drain.is_some().then_some((address, change, 0));
                self.change(reply, result);
            }
            Command::BackendWeight {
                caller,
                service,
                address,
                change,
                reply,
            } => {
                let result = self.backend(&service, address).map(|_| {
                    format!(
                        "{} gives {address} of {service} weight {}",
                        caller.user, change.weight
                    )
                });
                self.change(reply, result);
            }
            Command::Overlay(reply) => give(reply, Ok(overlay())),
            Command::OverlayReset { caller, reply } => {
                let message = format!("{} drops 2 run-time changes", caller.user);
                self.seen.lock().unwrap().push(message.clone());
                let changed = Changed {
                    message,
                    changed: true,
                    slots_moved: 341,
                    slots_moved_in_excess: 3,
                };
                let dropped = overlay().differences;
                give(reply, Ok(OverlayReset { changed, dropped }));
            }
            Command::Config(reply) => give(reply, Ok(MERGED.to_owned())),
            Command::Reload(reply) => self.change(
                reply,
                Err(ApiError::Failed(
                    "/etc/sluice/sluice.toml:3: unknown key".to_owned(),
                )),
            ),
            Command::Detach(reply) => self.change(reply, Ok("detached from eth0".to_owned())),
        }
    }

    fn change(&self, reply: Reply<Changed>, result: Result<String, ApiError>) {
        if let Ok(message) = &result {
            self.seen.lock().unwrap().push(message.clone());
        }
        give(
            reply,
            result.map(|message| Changed {
                message,
                changed: true,
                slots_moved: 341,
                slots_moved_in_excess: 3,
            }),
        );
    }

    /// A drain until empty is over at the third look; one whose reason is "cancelled" is cancelled then; others go on.
    fn looked_at(&self, mut backends: Vec<BackendDetail>) -> Vec<BackendDetail> {
        let mut drain = self.drain.lock().unwrap();
        let Some((address, change, looks)) = drain.as_mut() else {
            return backends;
        };
        let until = change.drain.expect("it ends by itself");
        let backend = backends.iter_mut().find(|b| b.address == *address);
        let backend = backend.expect("it was there when it was asked for");
        *looks += 1;
        if *looks < 3 || (!until.until_empty && change.reason.is_none()) {
            backend.admin = BackendAdmin::Draining;
            backend.flows_remembered = 9 - *looks;
            backend.slots_unlearnt = 2 - *looks.min(&mut 2);
            backend.drain = Some(DrainStatus {
                until_empty: until.until_empty,
                timeout_seconds: until.timeout_seconds,
                ends_in_seconds: until.timeout_seconds,
            });
        } else if change.reason.as_deref() == Some("cancelled") {
            backend.admin = BackendAdmin::Active;
            backend.admin_by = Some("bob".to_owned());
        } else {
            backend.admin = BackendAdmin::Disabled;
            backend.admin_by = Some("sluice".to_owned());
            backend.admin_reason = Some("drained: no flows left".to_owned());
            backend.flows_remembered = 0;
        }
        backends
    }

    fn service(&self, name: &str) -> Result<ServiceDetail, ApiError> {
        let summary = self
            .status
            .services
            .iter()
            .find(|service| service.name == name)
            .ok_or_else(|| {
                ApiError::NotFound(format!("no service {name}; there are: web, dns6"))
            })?;
        Ok(ServiceDetail {
            summary: summary.clone(),
            affinity: Affinity::FiveTuple,
            tracking: Tracking::Adaptive,
            flow_idle_seconds: 7_440.0,
            grace_seconds: 30.0,
            hold_down_seconds: 600.0,
            linger_seconds: 60.0,
            on_empty: OnEmpty::Keep,
            health: "http GET /healthz port 8080 every 2s, timeout 1s, rise 2, fall 3".to_owned(),
            table_digest: Some("9f86d081884c7d65".to_owned()),
            backends: all_backends()
                .into_iter()
                .filter(|backend| backend.service == name)
                .collect(),
        })
    }

    fn backend(&self, service: &str, address: IpAddr) -> Result<BackendDetail, ApiError> {
        self.service(service)?
            .backends
            .into_iter()
            .find(|backend| backend.address == address)
            .ok_or_else(|| {
                ApiError::NotFound(format!("service {service} has no backend {address}"))
            })
    }
}

fn give<T>(reply: Reply<T>, answer: Result<T, ApiError>) {
    // Whoever asked may have left.
    let _ = reply.send(answer);
}

pub const MERGED: &str = "\
# By sluice 0.1.0: /etc/sluice/sluice.toml with the run-time changes upon it.
# Comments are lost, and defaults of the node are written out.

[node]
interfaces = [\"eth0\"]
";

pub fn overlay() -> OverlayDiff {
    let drained = Difference {
        kind: DifferenceKind::Admin,
        service: "web".to_owned(),
        backend: Some("10.0.0.12".parse().unwrap()),
        file: Some("active".to_owned()),
        now: Some("draining".to_owned()),
        reason: Some("kernel update".to_owned()),
        by: Some("alice".to_owned()),
        at: Some(1_760_000_500),
    };
    let added = Difference {
        kind: DifferenceKind::ServiceAdded,
        service: "dns6".to_owned(),
        backend: None,
        file: None,
        now: Some("[2001:db8::53]:53/udp".to_owned()),
        reason: None,
        ..drained.clone()
    };
    OverlayDiff {
        config: "/etc/sluice/sluice.toml".to_owned(),
        store: "/var/lib/sluice/overlay.json".to_owned(),
        differences: vec![added, drained],
    }
}

pub fn status() -> Status {
    Status {
        version: "0.1.0".to_owned(),
        pid: 812,
        uptime_seconds: 11_531,
        config: "/etc/sluice/sluice.toml".to_owned(),
        config_loaded_at: 1_760_000_000,
        config_error: None,
        ready: true,
        not_ready: Vec::new(),
        interfaces: vec![
            InterfaceStatus {
                name: "eth0".to_owned(),
                ifindex: 2,
                asked: XdpMode::Auto,
                got: Some(XdpMode::Native),
                note: None,
            },
            InterfaceStatus {
                name: "eth1".to_owned(),
                ifindex: 3,
                asked: XdpMode::Auto,
                got: Some(XdpMode::Generic),
                note: Some("the driver e1000e has no native XDP".to_owned()),
            },
        ],
        services: vec![
            ServiceSummary {
                name: "web".to_owned(),
                vip: "203.0.113.10:80".to_owned(),
                protocol: Protocol::Tcp,
                forward: Forward::Ipip,
                backends: 2,
                eligible: 1,
                table_size: 1_021,
                slot_modes: SlotModes {
                    steady: 921,
                    learn: 80,
                    residue: 20,
                },
                packets: 1_234_567,
                bytes: 987_654_321,
                flows: 54_321,
                origin: "file".to_owned(),
            },
            ServiceSummary {
                name: "dns6".to_owned(),
                vip: "[2001:db8::53]:53".to_owned(),
                protocol: Protocol::Udp,
                forward: Forward::L2,
                backends: 1,
                eligible: 1,
                table_size: 1_021,
                slot_modes: SlotModes {
                    steady: 1_021,
                    ..SlotModes::default()
                },
                packets: 12,
                bytes: 960,
                flows: 12,
                origin: "runtime".to_owned(),
            },
        ],
        tracking: TrackingStatus {
            slots: SlotModes {
                steady: 1_942,
                learn: 80,
                residue: 20,
            },
            entries: FlowEntries {
                syn: 2,
                learnt: 10,
                established: 300,
                closed: 1,
            },
            capacity: 1_048_576,
            pins_failed: 7,
            learning_lost: 0,
        },
        packets: vec![
            ReasonCount {
                verdict: "forward".to_owned(),
                reason: "forwarded".to_owned(),
                packets: 1_234_579,
                help: "sent to a backend".to_owned(),
            },
            ReasonCount {
                verdict: "pass".to_owned(),
                reason: "no-service".to_owned(),
                packets: 42,
                help: "not for a VIP: left to the host".to_owned(),
            },
        ],
        capacity: vec![CapacityUse {
            what: "slots".to_owned(),
            used: 2_042,
            limit: 4_194_304,
        }],
    }
}

pub fn all_backends() -> Vec<BackendDetail> {
    let up = BackendDetail {
        service: "web".to_owned(),
        address: "10.0.0.11".parse().unwrap(),
        replaces: None,
        id: 1,
        weight: 1,
        admin: BackendAdmin::Active,
        admin_reason: None,
        admin_by: None,
        admin_at: None,
        drain: None,
        forgotten_in_seconds: None,
        health: Health::Up,
        health_reason: Some("HTTP 200".to_owned()),
        health_since_seconds: Some(11_500),
        eligible: true,
        not_eligible: None,
        next_hop: Some("eth0 via 02:00:00:00:00:01, mtu 1500".to_owned()),
        slots: 1_021,
        flows_remembered: 0,
        slots_unlearnt: 1_021,
        packets: 1_234_567,
        bytes: 987_654_321,
        flows: 54_321,
        origin: "file".to_owned(),
    };
    let down = BackendDetail {
        address: "10.0.0.12".parse().unwrap(),
        id: 2,
        admin: BackendAdmin::Draining,
        admin_reason: Some("kernel update".to_owned()),
        admin_by: Some("alice".to_owned()),
        admin_at: Some(1_760_000_500),
        health: Health::Down,
        health_reason: Some("connection refused".to_owned()),
        health_since_seconds: Some(75),
        eligible: false,
        not_eligible: Some("draining: kernel update".to_owned()),
        slots: 0,
        flows_remembered: 312,
        slots_unlearnt: 80,
        packets: 0,
        bytes: 0,
        flows: 0,
        ..up.clone()
    };
    let v6 = BackendDetail {
        service: "dns6".to_owned(),
        address: "2001:db8::11".parse().unwrap(),
        replaces: None,
        id: 3,
        health: Health::Unknown,
        health_reason: None,
        health_since_seconds: None,
        packets: 12,
        bytes: 960,
        flows: 12,
        origin: "runtime".to_owned(),
        ..up.clone()
    };
    vec![up, down, v6]
}
