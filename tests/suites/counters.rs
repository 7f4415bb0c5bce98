//! The daemon's numbers are what the backends received: compared with captures at the backends' ports, exactly.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lab::capture::SETTLE;
use lab::config::{File, Service};
use lab::metrics::Metrics;
use lab::packet::{IPPROTO_TCP, Ip};
use lab::{Capture, Daemon, Direction, Family, Lab, wait_until};

use crate::Suites;
use crate::setup::{ECHO, HTTP, carries_client_packet, client_packet, serving};

pub fn add(suites: &mut Suites) {
    suites.case(
        "counters",
        "metrics_equal_what_backends_received",
        counted_equals_received,
    );
    let missing = (std::process::Command::new("promtool")
        .arg("--version")
        .output()
        .is_err())
    .then_some("promtool is not installed");
    suites.case_needing("counters", "promtool_is_content", missing, promtool);
}

/// Packets, bytes and flows of one (service, backend).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    packets: u64,
    bytes: u64,
    flows: u64,
}

/// The services of this suite: name, VIP, protocol number.
fn keys() -> [(&'static str, SocketAddr, u8); 4] {
    [
        ("web4", Family::V4.vip_port(HTTP), IPPROTO_TCP),
        ("web6", Family::V6.vip_port(HTTP), IPPROTO_TCP),
        ("udp4", Family::V4.vip_port(ECHO), lab::packet::IPPROTO_UDP),
        ("near", Family::V4.vip_port(ECHO), IPPROTO_TCP),
    ]
}

fn start(lab: &Lab) -> Result<Daemon<'_>> {
    let v4 = || lab.backends().iter().map(|backend| backend.v4());
    let v6 = || lab.backends().iter().map(|backend| backend.v6());
    let [web4, web6, udp4, near] = keys().map(|(name, vip, _)| (name, vip));
    Daemon::start(
        lab,
        &File::new(vec![
            Service::tcp(web4.0, web4.1, v4()).probed(),
            Service::tcp(web6.0, web6.1, v6()),
            Service::udp(udp4.0, udp4.1, v4()),
            Service::tcp(near.0, near.1, v4()).forward("l2"),
        ]),
    )
}

fn drive(lab: &Lab) -> Result<()> {
    lab.client()
        .http(Family::V4.vip_port(HTTP), 600, 32)?
        .ensure_all_answered()?;
    lab.client()
        .http(Family::V6.vip_port(HTTP), 300, 32)?
        .ensure_all_answered()?;
    lab.client()
        .udp(Family::V4.vip_port(ECHO), 500, 32)?
        .ensure_all_answered()?;
    for number in 0..4 {
        let mut connection = lab
            .client()
            .connect_from(Family::V4.vip_port(ECHO), number)?;
        for line in ["a", "somewhat longer", "end"] {
            connection.exchange(line)?;
        }
    }
    Ok(())
}

fn counted_equals_received() -> Result<()> {
    let lab = serving(Lab::builder().backends(3))?;
    let daemon = start(&lab)?;
    let captures = lab
        .backends()
        .iter()
        .map(|backend| {
            Capture::start(
                lab.router(),
                &backend.port(),
                Direction::Out,
                carries_client_packet,
            )
        })
        .collect::<Result<Vec<_>>>()?;
    drive(&lab)?;

    // Closing connections still exchange a few packets: wait until both sides have stopped, at the same number.
    let mut metrics = daemon.metrics()?;
    wait_until("counted and captured packets to agree", SETTLE, || {
        metrics = daemon.metrics()?;
        let captured: u64 = captures.iter().map(Capture::seen).sum();
        Ok(metrics.sum("sluice_backend_packets_total", &[]) == captured)
    })
    .with_context(|| {
        let captured: Vec<u64> = captures.iter().map(Capture::seen).collect();
        format!(
            "captured per backend: {captured:?}, the metrics say\n{}",
            metrics.text
        )
    })?;

    let mut received: BTreeMap<(&str, IpAddr), Totals> = BTreeMap::new();
    for (backend, capture) in lab.backends().iter().zip(captures) {
        for frame in capture.stop()? {
            let packet =
                client_packet(&frame.bytes).context("a captured frame carries no client packet")?;
            let service =
                service_of(&packet).with_context(|| format!("packet of no service: {packet:?}"))?;
            let address = if service == "web6" {
                backend.v6()
            } else {
                backend.v4()
            };
            let totals = received.entry((service, address)).or_default();
            totals.packets += 1;
            totals.bytes += packet.bytes.len() as u64;
            totals.flows += u64::from(packet.opens_a_flow());
        }
    }
    let mut sum = 0;
    for (name, _, _) in keys() {
        for backend in lab.backends() {
            let address = if name == "web6" {
                backend.v6()
            } else {
                backend.v4()
            };
            let received = received.remove(&(name, address)).unwrap_or_default();
            let counted = counted(&metrics, name, address)?;
            // UDP has no opener that the data path could count.
            let flows = if name == "udp4" {
                counted.flows
            } else {
                received.flows
            };
            let received = Totals { flows, ..received };
            ensure!(
                counted == received,
                "{name} {address}: counted {counted:?}, received {received:?}"
            );
            sum += counted.packets;
        }
    }
    ensure!(received.is_empty(), "packets nobody counted: {received:?}");
    let forwarded = metrics.sum("sluice_packets_total", &[("verdict", "forward")]);
    ensure!(
        forwarded == sum,
        "forwarded {forwarded}, backends' sum {sum}"
    );

    let http: u64 = lab
        .backends()
        .iter()
        .map(|b| {
            b.counters()
                .served
                .load(std::sync::atomic::Ordering::Relaxed)
        })
        .sum();
    let flows = metrics.sum("sluice_backend_flows_total", &[("service", "web4")])
        + metrics.sum("sluice_backend_flows_total", &[("service", "web6")]);
    ensure!(
        http == 900 && flows == 900,
        "served {http}, flows counted {flows}, connections 900"
    );
    the_cli_says_the_same(&lab, &daemon, &metrics)
}

fn the_cli_says_the_same(lab: &Lab, daemon: &Daemon<'_>, metrics: &Metrics) -> Result<()> {
    for backend in lab.backends() {
        let shown = daemon.backend("web4", backend.v4())?;
        let totals = Totals {
            packets: shown.packets,
            bytes: shown.bytes,
            flows: shown.flows,
        };
        ensure!(
            totals == counted(metrics, "web4", backend.v4())?,
            "`backend list` says {totals:?}"
        );
    }
    Ok(())
}

fn promtool() -> Result<()> {
    let lab = serving(Lab::builder().backends(2))?;
    let daemon = start(&lab)?;
    drive(&lab)?;
    let complaints = daemon
        .metrics()?
        .promtool_complaints()?
        .context("promtool is gone")?;
    ensure!(
        complaints.is_empty(),
        "promtool check metrics: {complaints}"
    );
    Ok(())
}

fn counted(metrics: &Metrics, service: &str, backend: IpAddr) -> Result<Totals> {
    let backend = backend.to_string();
    let labels = [("service", service), ("backend", backend.as_str())];
    Ok(Totals {
        packets: metrics.value("sluice_backend_packets_total", &labels)?,
        bytes: metrics.value("sluice_backend_bytes_total", &labels)?,
        flows: metrics.value("sluice_backend_flows_total", &labels)?,
    })
}

fn service_of(packet: &Ip<'_>) -> Option<&'static str> {
    let (_, port) = packet.ports()?;
    keys()
        .into_iter()
        .find(|(_, vip, protocol)| {
            *vip == SocketAddr::new(packet.destination, port) && *protocol == packet.protocol
        })
        .map(|(name, _, _)| name)
}
