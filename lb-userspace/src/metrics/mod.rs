//! Metrics: what is exported, under which names, in which format.
//!
//! Owns: the names and help texts of the user contract (docs/metrics.md), and the two text formats.
//! Does not own: where the numbers come from ([`Source`], implemented by the daemon), or the data path's
//! reasons, which arrive with their names.

mod serve;

use std::fmt;
use std::net::IpAddr;

use lb_common::event::Event;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

use crate::health::{DURATION_BUCKETS, ProbeStatistics};

pub use serve::{Source, serve};

/// Everything one scrape shows, taken at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The daemon's version.
    pub version: String,
    pub backends: Vec<BackendSample>,
    pub reasons: Vec<ReasonSample>,
    pub probes: Vec<ProbeSample>,
    pub table_digests: Vec<TableDigest>,
    pub slots: Vec<SlotSample>,
    /// Remembered flows by state: `syn`, `learnt`, `established`, `closed`.
    pub flow_entries: Vec<(&'static str, u64)>,
    /// What tracking could not do for packets.
    pub events: Vec<(Event, u64)>,
    /// Changes of lookup tables since the daemon started.
    pub table_changes: u64,
}

/// Counters and state of one backend of one service.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendSample {
    pub service: String,
    pub address: IpAddr,
    pub packets: u64,
    pub bytes: u64,
    pub flows: u64,
    /// `None` for one that was removed, while its flows linger.
    pub declared: Option<Declared>,
}

/// State of a backend that is part of its service.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Declared {
    /// Whether probes say that it is up.
    pub up: bool,
    pub weight: u32,
}

/// Packets of one verdict and reason.
#[derive(Clone, Debug, PartialEq)]
pub struct ReasonSample {
    pub verdict: String,
    pub reason: String,
    pub packets: u64,
}

/// Probes of one backend of one service.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeSample {
    pub service: String,
    pub backend: IpAddr,
    pub stats: ProbeStatistics,
}

/// Which lookup table a service has; equal digests on two balancers mean equal tables.
#[derive(Clone, Debug, PartialEq)]
pub struct TableDigest {
    pub service: String,
    /// Hexadecimal.
    pub digest: String,
}

/// Slots of one service in one mode.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotSample {
    pub service: String,
    /// `steady`, `learn` or `residue`.
    pub mode: String,
    pub slots: u64,
}

/// A probe's duration histogram as the encoder takes it: not cumulative, the last bucket without bound.
fn duration_buckets(stats: &ProbeStatistics) -> Vec<(f64, u64)> {
    let within: u64 = stats.buckets.iter().sum();
    DURATION_BUCKETS
        .into_iter()
        .zip(stats.buckets)
        .chain([(f64::INFINITY, stats.count_total().saturating_sub(within))])
        .collect()
}

/// The snapshot in the OpenMetrics text format, which [`OPENMETRICS`] is the content type of.
pub fn encode(snapshot: &Snapshot) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(snapshot.clone())));
    let mut text = String::new();
    // Writing into a string cannot fail, and no encoder here returns an error of its own.
    text::encode(&mut text, &registry).expect("a String takes every write");
    text
}

/// Content type of [`encode`].
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Content type of [`encode_plain`].
pub const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The snapshot in the older Prometheus text format: for `curl`, `promtool check metrics`, and whoever does
/// not ask for OpenMetrics.
///
/// The samples are the same. Only the comments differ: there the families of counters and infos carry the
/// sample's whole name, infos are gauges, and units and the end mark do not exist.
pub fn encode_plain(snapshot: &Snapshot) -> String {
    let openmetrics = encode(snapshot);
    let mut plain = String::with_capacity(openmetrics.len());
    let mut lines = openmetrics.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
            let kind = lines
                .next_if(|next| next.starts_with("# TYPE "))
                .and_then(|next| next.rsplit(' ').next())
                .unwrap_or("untyped");
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                other => ("", other),
            };
            plain.push_str(&format!(
                "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n"
            ));
        } else if !line.starts_with('#') {
            plain.push_str(line);
            plain.push('\n');
        }
    }
    plain
}

#[derive(Debug)]
struct Families(Snapshot);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let out = &mut encoder;
        backends(out, &self.0.backends)?;

        let mut family = counter(
            out,
            "sluice_packets",
            "Packets seen by the data path, by verdict and by the reason for it",
        )?;
        for sample in &self.0.reasons {
            let labels = [
                ("verdict", sample.verdict.as_str()),
                ("reason", sample.reason.as_str()),
            ];
            count(&mut family.encode_family(&labels)?, sample.packets)?;
        }

        probes(out, &self.0.probes)?;

        let mut family = gauge(
            out,
            "sluice_slots",
            "Slots of the service's lookup table, by mode: steady, learn or residue",
        )?;
        for sample in &self.0.slots {
            let labels = [
                ("service", sample.service.as_str()),
                ("mode", sample.mode.as_str()),
            ];
            family.encode_family(&labels)?.encode_gauge(&sample.slots)?;
        }

        let mut family = gauge(
            out,
            "sluice_flow_table_entries",
            "Flows remembered around changes, by state: syn, learnt, established or closed; as of the last sweep",
        )?;
        for (state, entries) in &self.0.flow_entries {
            family
                .encode_family(&[("state", *state)])?
                .encode_gauge(entries)?;
        }

        for (event, times) in &self.0.events {
            let name = format!("sluice_{}", event.name());
            count(&mut counter(out, &name, event.help())?, *times)?;
        }

        let mut family = counter(
            out,
            "sluice_table_changes",
            "Changes of lookup tables since the daemon started",
        )?;
        count(&mut family, self.0.table_changes)?;

        let mut family = info(
            out,
            "sluice_table_digest",
            "Digest of the service's lookup table; equal on two balancers that have equal tables, a backend being the same as the one that it replaces",
        )?;
        for table in &self.0.table_digests {
            family.encode_info(&[
                ("service", table.service.as_str()),
                ("digest", table.digest.as_str()),
            ])?;
        }

        info(out, "sluice_build", "The version of the daemon; always 1")?
            .encode_info(&[("version", self.0.version.as_str())])
    }
}

fn backends(out: &mut DescriptorEncoder, samples: &[BackendSample]) -> fmt::Result {
    let labels = |sample: &BackendSample| {
        [
            ("service", sample.service.clone()),
            ("backend", sample.address.to_string()),
        ]
    };

    let mut family = counter(
        out,
        "sluice_backend_packets",
        "Packets forwarded to the backend",
    )?;
    for sample in samples {
        count(&mut family.encode_family(&labels(sample))?, sample.packets)?;
    }

    // The unit is part of the name: sluice_backend_bytes_total.
    let mut family = out.encode_descriptor(
        "sluice_backend",
        "Bytes forwarded to the backend",
        Some(&Unit::Bytes),
        MetricType::Counter,
    )?;
    for sample in samples {
        count(&mut family.encode_family(&labels(sample))?, sample.bytes)?;
    }

    let mut family = counter(
        out,
        "sluice_backend_flows",
        "New TCP flows forwarded to the backend, counted at their opening packet (the SYN); always 0 for UDP services",
    )?;
    for sample in samples {
        count(&mut family.encode_family(&labels(sample))?, sample.flows)?;
    }

    let mut family = gauge(
        out,
        "sluice_backend_up",
        "1 while probes say that the backend is up, else 0",
    )?;
    let declared = || samples.iter().filter_map(|s| Some((s, s.declared?)));
    for (sample, state) in declared() {
        family
            .encode_family(&labels(sample))?
            .encode_gauge(&u32::from(state.up))?;
    }

    let mut family = gauge(
        out,
        "sluice_backend_weight",
        "Share of new flows that the backend is configured for, relative to the others of its service",
    )?;
    for (sample, state) in declared() {
        family
            .encode_family(&labels(sample))?
            .encode_gauge(&state.weight)?;
    }
    Ok(())
}

fn probes(out: &mut DescriptorEncoder, samples: &[ProbeSample]) -> fmt::Result {
    let mut family = counter(
        out,
        "sluice_probes",
        "Probes of the backend, by result: success or failure",
    )?;
    for sample in samples {
        let backend = sample.backend.to_string();
        let results = [
            ("success", sample.stats.successes),
            ("failure", sample.stats.failures),
        ];
        for (result, probes) in results {
            let labels = [
                ("service", sample.service.as_str()),
                ("backend", backend.as_str()),
                ("result", result),
            ];
            count(&mut family.encode_family(&labels)?, probes)?;
        }
    }

    let mut family = out.encode_descriptor(
        "sluice_probe_duration",
        "How long probes of the backend took, failed ones included",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    for sample in samples {
        let labels = [
            ("service", sample.service.clone()),
            ("backend", sample.backend.to_string()),
        ];
        family
            .encode_family(&labels)?
            .encode_histogram::<NoLabelSet>(
                sample.stats.sum.as_secs_f64(),
                sample.stats.count_total(),
                &duration_buckets(&sample.stats),
                None,
            )?;
    }
    Ok(())
}

fn counter<'a>(
    out: &'a mut DescriptorEncoder,
    name: &'a str,
    help: &str,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    out.encode_descriptor(name, help, None, MetricType::Counter)
}

fn gauge<'a>(
    out: &'a mut DescriptorEncoder,
    name: &'a str,
    help: &str,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    out.encode_descriptor(name, help, None, MetricType::Gauge)
}

fn info<'a>(
    out: &'a mut DescriptorEncoder,
    name: &'a str,
    help: &str,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    out.encode_descriptor(name, help, None, MetricType::Info)
}

fn count(encoder: &mut MetricEncoder, value: u64) -> fmt::Result {
    encoder.encode_counter(&value, None::<&Exemplar<NoLabelSet, u64>>)
}

#[cfg(test)]
mod tests;
