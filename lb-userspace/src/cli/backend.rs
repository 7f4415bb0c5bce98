//! `sluice backend`: who serves.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use comfy_table::Cell;

use super::output::{Style, Tone, bytes, count};
use super::{Failure, Json, address, drain, output, wait};
use crate::api::client::Client;
use crate::api::dto::{AdminChange, BackendAdd, BackendAdmin, BackendDetail, WeightChange};
use crate::model::{Admin, BackendSpec, Health};

/// List backends; add, remove, drain, activate, disable and weigh them
///
/// Changes are kept on disk and survive reloads and restarts; `sluice diff` lists them, `sluice reset` drops them.
#[derive(Debug, Args)]
#[command(after_help = "\
Taking a backend out for maintenance:
  sluice backend drain web 10.0.0.12 --reason 'kernel update'    New flows go elsewhere
  sluice backend drain web 10.0.0.12 --until-empty --timeout 2h  Wait until its flows have ended, then no packets at all
  sluice backend activate web 10.0.0.12                          Back to work")]
pub struct BackendArgs {
    #[command(flatten)]
    json: Json,
    #[command(subcommand)]
    verb: BackendVerb,
}

#[derive(Debug, Subcommand)]
enum BackendVerb {
    /// List the backends of one service, or of all
    List {
        /// The service's name; without it, every service
        service: Option<String>,
    },
    /// Add a backend to a service
    Add {
        #[command(flatten)]
        backend: Backend,
        /// Its share of new flows relative to the other backends [default: 1, or that of the one it replaces]
        #[arg(long, value_parser = weight())]
        weight: Option<u32>,
        /// Take the place of this backend in the lookup table, so that only its slots move, and remove it
        #[arg(long, value_name = "OLD", value_parser = address::ip)]
        replaces: Option<IpAddr>,
    },
    /// Remove a backend from a service: new flows go elsewhere at once, open ones after the service's `linger`
    ///
    /// Connections that are open after `linger` (60 s by default) go elsewhere and are reset there: to let them end, drain first.
    /// With tracking = "off" they go elsewhere at once.
    Remove {
        #[command(flatten)]
        backend: Backend,
    },
    /// Send new flows elsewhere, with a reason; open ones stay until they end
    ///
    /// For UDP, new flows go elsewhere only after `flow_idle` (five minutes by default), and so do new clients with affinity =
    /// "client-ip" (TCP: two hours). With tracking = "off" open flows go elsewhere, too, at once. When no other backend is left and
    /// the service says on_empty = "keep", the table stays as it is.
    ///
    /// With --until-empty or --timeout the drain ends by itself, whether somebody waits for it or not: the backend is disabled then,
    /// also if it is the last one. A drain that is in force can be given either later; `sluice backend activate` cancels it.
    Drain(drain::DrainArgs),
    /// Let a drained or disabled backend have new flows again
    Activate {
        #[command(flatten)]
        backend: Backend,
        #[command(flatten)]
        reason: Reason,
    },
    /// Give a backend no packets at all: its open connections go elsewhere at once, and are reset there
    Disable {
        #[command(flatten)]
        backend: Backend,
        #[command(flatten)]
        reason: Reason,
    },
    /// Set a backend's share of new flows; open ones stay
    Weight {
        #[command(flatten)]
        backend: Backend,
        /// Its share relative to the other backends; 0 = none
        #[arg(value_parser = weight())]
        weight: u32,
    },
}

#[derive(Debug, Args)]
pub struct Backend {
    /// The service's name
    pub service: String,
    /// The backend's address, for example 10.0.0.11 or 2001:db8::11
    #[arg(value_parser = address::ip)]
    pub address: IpAddr,
}

#[derive(Debug, Args)]
pub struct Reason {
    /// Why, for whoever looks next; kept with your name and the time
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

fn weight() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(0..=i64::from(BackendSpec::MAX_WEIGHT))
}

pub fn run(args: BackendArgs, client: &Client) -> Result<(), Failure> {
    let json = args.json.json;
    let set = |backend: Backend, admin, reason: Reason| {
        let change = AdminChange {
            admin,
            reason: reason.reason,
            drain: None,
        };
        wait(client.backend_admin(&backend.service, backend.address, &change))
    };
    let changed = match args.verb {
        BackendVerb::List { service } => {
            let backends = wait(client.backends(service.as_deref()))??;
            if json {
                return output::print_json(&backends);
            }
            return output::print(&table(&backends, None, Style::stdout()));
        }
        BackendVerb::Add {
            backend,
            weight,
            replaces,
        } => {
            let add = BackendAdd {
                address: backend.address,
                weight,
                replaces,
            };
            wait(client.backend_add(&backend.service, &add))
        }
        BackendVerb::Remove { backend } => {
            wait(client.backend_remove(&backend.service, backend.address))
        }
        BackendVerb::Drain(args) => return drain::run(args, client, json),
        BackendVerb::Activate { backend, reason } => set(backend, Admin::Active, reason),
        BackendVerb::Disable { backend, reason } => set(backend, Admin::Disabled, reason),
        BackendVerb::Weight { backend, weight } => {
            let change = WeightChange { weight };
            wait(client.backend_weight(&backend.service, backend.address, &change))
        }
    }??;
    output::print_changed(&changed, json)
}

/// The backends of one service (`table_size` known: with each one's share of the slots) or of several.
pub fn table(backends: &[BackendDetail], table_size: Option<u32>, style: Style) -> String {
    let header = [
        if table_size.is_some() {
            "SHARE"
        } else {
            "SERVICE"
        },
        "BACKEND",
        "WEIGHT",
        "ADMIN",
        "HEALTH",
        "ELIGIBLE",
        "SLOTS",
        "LEFT",
        "FLOWS",
        "PACKETS",
        "BYTES",
        "NOTE",
    ];
    let rows = backends
        .iter()
        .map(|backend| {
            let first = match table_size {
                Some(size) => {
                    let share = f64::from(backend.slots) * 100.0 / f64::from(size.max(1));
                    format!("{share:.1} %")
                }
                None => backend.service.clone(),
            };
            vec![
                Cell::new(first),
                Cell::new(backend.address),
                Cell::new(backend.weight),
                style.cell(backend.admin, tone_of_admin(backend.admin)),
                style.cell(backend.health, tone_of_health(backend.health)),
                if backend.eligible {
                    style.cell("yes", Tone::Good)
                } else {
                    style.cell("no", Tone::Bad)
                },
                Cell::new(count(u64::from(backend.slots))),
                Cell::new(left(backend)),
                Cell::new(count(backend.flows)),
                Cell::new(count(backend.packets)),
                Cell::new(bytes(backend.bytes)),
                Cell::new(note(backend)),
            ]
        })
        .collect();
    let numbers: &[usize] = match table_size {
        Some(_) => &[0, 2, 6, 7, 8, 9, 10],
        None => &[2, 6, 7, 8, 9, 10],
    };
    style.table(&header, numbers, rows)
}

/// How many flows a backend that gets no new ones still has; of others only those of slots in change are remembered.
pub fn left(backend: &BackendDetail) -> String {
    let known = count(backend.flows_remembered);
    match backend.admin {
        BackendAdmin::Active if backend.weight > 0 => String::new(),
        _ if backend.slots_unlearnt == 0 => known,
        _ => format!("≥ {known}"),
    }
}

fn tone_of_admin(admin: BackendAdmin) -> Tone {
    match admin {
        BackendAdmin::Active => Tone::Plain,
        BackendAdmin::Draining | BackendAdmin::Removed => Tone::Doubtful,
        BackendAdmin::Disabled => Tone::Bad,
    }
}

fn tone_of_health(health: Health) -> Tone {
    match health {
        Health::Up => Tone::Good,
        Health::Unknown => Tone::Doubtful,
        Health::Down => Tone::Bad,
    }
}

/// Why it is not eligible, or when it drains no more; else what is wrong although it is.
fn note(backend: &BackendDetail) -> String {
    let unwell = backend.health != Health::Up;
    let why = backend
        .not_eligible
        .as_deref()
        .or(backend.health_reason.as_deref().filter(|_| unwell))
        .unwrap_or_default();
    match &backend.drain {
        Some(drain) => format!("{why}; {}", drain::ends(drain)),
        None => why.to_owned(),
    }
}
