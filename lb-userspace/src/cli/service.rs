//! `sluice service`: what is balanced.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::address::{self, Vip};
use super::output::{Style, Tone, bytes, count, duration, tone_of_eligible};
use super::{Failure, Json, backend, drain, output, status, wait};
use crate::api::client::Client;
use crate::api::dto::{BackendAdmin, ServiceAdd, ServiceDetail};
use crate::api::server::BODY_LIMIT;
use crate::model::Tracking;

/// List, show, add and remove services
#[derive(Debug, Args)]
pub struct ServiceArgs {
    #[command(flatten)]
    json: Json,
    #[command(subcommand)]
    verb: ServiceVerb,
}

#[derive(Debug, Subcommand)]
enum ServiceVerb {
    /// List every service with its eligible backends and counters
    List,
    /// Show one service: settings, lookup table, backends
    Show {
        /// The service's name
        name: String,
    },
    Add(Box<AddArgs>),
    /// Remove a service and its backends; packets to its VIP then reach this host's own stack
    Remove {
        /// The service's name
        name: String,
    },
}

/// Add a service
///
/// What is not said has the same default as in a `[[service]]` table of the configuration.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice service add web 203.0.113.10:80/tcp --backend 10.0.0.11 --backend 10.0.0.12=3
  sluice service add web6 '[2001:db8::1]:443/tcp' --health http --health-path /healthz --health-port 8080 --backend 2001:db8::11
  sluice service add dns --vip '203.0.113.53:53' --protocol udp --affinity client-ip --health none --backend 10.0.0.53
  echo '{\"name\": \"web\", \"vip\": \"203.0.113.10:80\", \"protocol\": \"tcp\", \"backend\": [{\"address\": \"10.0.0.11\"}]}' | sluice service add --from-json -")]
struct AddArgs {
    /// A name for the service, unique on this balancer
    #[arg(required_unless_present = "from_json")]
    name: Option<String>,
    /// What it answers for: VIP, port (* = every port) and protocol, for example 203.0.113.10:80/tcp
    #[arg(value_name = "VIP:PORT/PROTO", value_parser = address::vip, required_unless_present_any = ["vip_option", "from_json"])]
    vip: Option<Vip>,
    /// The same as an option: VIP:PORT, [IPV6]:PORT, VIP:*
    #[arg(id = "vip_option", long = "vip", value_name = "VIP:PORT", value_parser = address::vip, conflicts_with = "vip")]
    vip_option: Option<Vip>,
    /// The protocol, when it does not stand in the VIP
    #[arg(long, value_parser = ["tcp", "udp"])]
    protocol: Option<String>,
    /// How packets travel to the backends: in an outer IP header, in IP, UDP and GUE, or with new Ethernet addresses only
    #[arg(long, value_parser = ["ipip", "gue", "l2"])]
    forward: Option<String>,
    /// What is hashed: connections one by one, or all of a client alike
    #[arg(long, value_parser = ["5-tuple", "client-ip"])]
    affinity: Option<String>,
    /// Which flows are remembered: those that a change could break, all, or none
    #[arg(long, value_parser = ["adaptive", "always", "off"])]
    tracking: Option<String>,
    /// How long a remembered flow may be silent, for example 2h [default: 7440s for TCP, 300s for UDP]
    #[arg(long, value_name = "TIME", value_parser = duration_text)]
    flow_idle: Option<String>,
    /// How long a backend whose probes fail keeps its flows [default: 30s for TCP, 0s for UDP]
    #[arg(long, value_name = "TIME", value_parser = duration_text)]
    grace: Option<String>,
    /// After how long a backend that is down or disabled is forgotten, and its flows with it [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = duration_text)]
    hold_down: Option<String>,
    /// How long a backend that is removed keeps its flows [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = duration_text)]
    linger: Option<String>,
    /// Slots of the lookup table, fixed for the service's life: auto, 1021, 4093, 16381 or 65537
    #[arg(long, value_name = "SIZE", value_parser = table_size)]
    table_size: Option<Value>,
    /// When no backend is eligible: keep sending, as if probes succeeded, or drop packets
    #[arg(long, value_parser = ["keep", "drop"])]
    on_empty: Option<String>,
    /// How backends are probed
    #[arg(long, value_parser = ["tcp", "http", "none"])]
    health: Option<String>,
    /// What an HTTP probe asks for, for example /healthz
    #[arg(long, value_name = "PATH", requires = "health")]
    health_path: Option<String>,
    /// The port to probe, when it is not the service's
    #[arg(long, value_name = "PORT", requires = "health", value_parser = clap::value_parser!(u16).range(1..))]
    health_port: Option<u16>,
    /// Time between probes, for example 2s or 500ms
    #[arg(long, value_name = "TIME", requires = "health", value_parser = duration_text)]
    interval: Option<String>,
    /// Time after which a probe has failed
    #[arg(long, value_name = "TIME", requires = "health", value_parser = duration_text)]
    timeout: Option<String>,
    /// Successes in a row that bring a backend up
    #[arg(long, value_name = "N", requires = "health")]
    rise: Option<u32>,
    /// Failures in a row that take a backend down
    #[arg(long, value_name = "N", requires = "health")]
    fall: Option<u32>,
    /// A backend, with its weight if not 1 (repeat it)
    #[arg(long = "backend", value_name = "ADDRESS[=WEIGHT]", value_parser = address::ip_with_weight)]
    backends: Vec<(IpAddr, Option<u32>)>,
    /// Take the whole service from a file (`-`: stdin): a `[[service]]` table as JSON
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "name", "vip", "vip_option", "protocol", "forward", "affinity", "tracking", "flow_idle", "grace",
        "hold_down", "linger", "table_size", "on_empty", "health", "backends",
    ])]
    from_json: Option<PathBuf>,
}

fn table_size(text: &str) -> Result<Value, String> {
    match text {
        "auto" => Ok(json!("auto")),
        number => number.parse::<u32>().map(|size| json!(size)).map_err(|_| {
            format!("`{number}` is not a table size; write auto or a number of slots")
        }),
    }
}

/// Checked here for a quick answer; the daemon reads the text as it reads the configuration's.
fn duration_text(text: &str) -> Result<String, String> {
    match humantime::parse_duration(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{error}; write for example 2s or 500ms")),
    }
}

pub fn run(args: ServiceArgs, client: &Client) -> Result<(), Failure> {
    let json = args.json.json;
    let style = Style::stdout();
    match args.verb {
        ServiceVerb::List => {
            let services = wait(client.services())??;
            if json {
                return output::print_json(&services);
            }
            output::print(&status::services(&services, style))
        }
        ServiceVerb::Show { name } => {
            let service = wait(client.service(&name))??;
            if json {
                return output::print_json(&service);
            }
            output::print(&render(&service, style))
        }
        ServiceVerb::Add(add) => {
            let service = add.service()?;
            let changed = wait(client.service_add(&ServiceAdd { service }))??;
            output::print_changed(&changed, json)
        }
        ServiceVerb::Remove { name } => {
            let changed = wait(client.service_remove(&name))??;
            output::print_changed(&changed, json)
        }
    }
}

impl AddArgs {
    /// The `[[service]]` table that was asked for; keys that were not said are left to the daemon.
    fn service(self) -> Result<Value, Failure> {
        if let Some(path) = &self.from_json {
            return Ok(read_json(path)?);
        }
        let vip = self
            .vip
            .or(self.vip_option)
            .ok_or_else(|| Failure::usage("name the VIP, for example 203.0.113.10:80/tcp"))?;
        let protocol = match (vip.protocol.map(|p| p.to_string()), self.protocol) {
            (Some(in_vip), Some(option)) if in_vip != option => {
                return Err(Failure::usage(format!(
                    "the VIP says {in_vip} and --protocol says {option}: leave one out"
                )));
            }
            (Some(protocol), _) | (None, Some(protocol)) => protocol,
            (None, None) => {
                return Err(Failure::usage(
                    "name the protocol: end the VIP with /tcp or /udp, or add --protocol tcp|udp",
                ));
            }
        };
        let mut service = Map::new();
        service.insert("name".to_owned(), json!(self.name));
        service.insert("vip".to_owned(), json!(vip.config_text()));
        service.insert("protocol".to_owned(), json!(protocol));
        insert(&mut service, "forward", self.forward);
        insert(&mut service, "affinity", self.affinity);
        insert(&mut service, "tracking", self.tracking);
        insert(&mut service, "flow_idle", self.flow_idle);
        insert(&mut service, "grace", self.grace);
        insert(&mut service, "hold_down", self.hold_down);
        insert(&mut service, "linger", self.linger);
        insert(&mut service, "table_size", self.table_size);
        insert(&mut service, "on_empty", self.on_empty);
        if self.health.is_some() {
            let mut health = Map::new();
            insert(&mut health, "kind", self.health);
            insert(&mut health, "path", self.health_path);
            insert(&mut health, "port", self.health_port);
            insert(&mut health, "interval", self.interval);
            insert(&mut health, "timeout", self.timeout);
            insert(&mut health, "rise", self.rise);
            insert(&mut health, "fall", self.fall);
            service.insert("health".to_owned(), Value::Object(health));
        }
        let backends: Vec<Value> = self
            .backends
            .into_iter()
            .map(|(address, weight)| match weight {
                Some(weight) => json!({"address": address, "weight": weight}),
                None => json!({"address": address}),
            })
            .collect();
        if !backends.is_empty() {
            service.insert("backend".to_owned(), Value::Array(backends));
        }
        Ok(Value::Object(service))
    }
}

fn insert(table: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        table.insert(key.to_owned(), value.into());
    }
}

fn read_json(path: &Path) -> anyhow::Result<Value> {
    let mut text = String::new();
    let name = if path == Path::new("-") {
        // One byte more than the daemon takes: it then says that it is too much.
        io::stdin()
            .take(BODY_LIMIT as u64 + 1)
            .read_to_string(&mut text)
            .context("cannot read stdin")?;
        "stdin".to_owned()
    } else {
        text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        path.display().to_string()
    };
    let value: Value =
        serde_json::from_str(&text).with_context(|| format!("{name} is not JSON"))?;
    anyhow::ensure!(
        value.is_object(),
        "{name}: expected one object with the keys of a [[service]] table, such as \"name\" and \"vip\""
    );
    Ok(value)
}

fn render(service: &ServiceDetail, style: Style) -> String {
    let summary = &service.summary;
    let eligible = style.paint(
        &format!("{} of {} backends", summary.eligible, summary.backends),
        tone_of_eligible(summary.eligible, summary.backends),
    );
    let digest = match &service.table_digest {
        Some(digest) => format!("digest {digest}"),
        None => style.paint("empty", Tone::Bad),
    };
    let lines = [
        ("service", format!("{} ({})", summary.name, summary.origin)),
        (
            "answers for",
            format!("{}/{}", summary.vip, summary.protocol),
        ),
        (
            "forward",
            format!("{}, affinity {}", summary.forward, service.affinity),
        ),
        ("health", service.health.clone()),
        (
            "eligible",
            format!("{eligible}; when none is left: {}", service.on_empty),
        ),
        ("tracking", tracking(service)),
        (
            "lookup table",
            format!(
                "{} slots ({}), {digest}",
                count(u64::from(summary.table_size)),
                status::modes(&summary.slot_modes)
            ),
        ),
        (
            "traffic",
            format!(
                "{} flows, {} packets, {}",
                count(summary.flows),
                count(summary.packets),
                bytes(summary.bytes)
            ),
        ),
    ];
    let mut text = String::new();
    for (name, value) in lines {
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{name:<14}{value}");
    }
    text.push('\n');
    if service.backends.is_empty() {
        let name = &summary.name;
        let _ = writeln!(
            text,
            "no backends: add one with `sluice backend add {name} ADDRESS`"
        );
        return text;
    }
    text.push_str(&backend::table(
        &service.backends,
        Some(summary.table_size),
        style,
    ));
    for backend in &service.backends {
        text.push_str(&backend_notes(backend));
    }
    text
}

/// Which flows are remembered, and for how long what is known holds.
fn tracking(service: &ServiceDetail) -> String {
    let time = |seconds: f64| {
        let time = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        humantime::format_duration(time).to_string()
    };
    if service.tracking == Tracking::Off {
        return "off".to_owned();
    }
    format!(
        "{}; flows may be silent for {}, failing backends keep them for {}, removed ones for {}, those down for {} are forgotten",
        service.tracking,
        time(service.flow_idle_seconds),
        time(service.grace_seconds),
        time(service.linger_seconds),
        time(service.hold_down_seconds)
    )
}

/// What is known beyond the table: the way to the backend, and who set its admin state.
fn backend_notes(backend: &crate::api::dto::BackendDetail) -> String {
    let mut notes = Vec::new();
    if let Some(old) = &backend.replaces {
        notes.push(format!("in the place of {old}"));
    }
    if let Some(next_hop) = &backend.next_hop {
        notes.push(format!("through {next_hop}"));
    }
    if let Some(by) = &backend.admin_by {
        let reason = backend
            .admin_reason
            .as_ref()
            .map_or(String::new(), |reason| format!(" ({reason})"));
        let when = backend
            .admin_at
            .map_or(String::new(), |at| format!(" at {}", output::moment(at)));
        notes.push(format!("made {} by {by}{when}{reason}", backend.admin));
    }
    if let Some(drain) = &backend.drain {
        notes.push(drain::ends(drain));
    }
    if !matches!(backend.admin, BackendAdmin::Active) || backend.flows_remembered > 0 {
        let flows = count(backend.flows_remembered);
        notes.push(match backend.slots_unlearnt {
            0 => format!("{flows} flows remembered: all it has"),
            slots => format!(
                "{flows} flows remembered, and those of {} slots that have not spoken since",
                count(slots)
            ),
        });
    }
    if let (Some(reason), Some(since)) = (&backend.health_reason, backend.health_since_seconds) {
        let since = duration(since);
        notes.push(format!("{} for {since}: {reason}", backend.health));
    }
    notes
        .iter()
        .enumerate()
        .map(|(index, note)| match index {
            0 => format!("\n{}\n  {note}\n", backend.address),
            _ => format!("  {note}\n"),
        })
        .collect()
}
