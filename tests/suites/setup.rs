//! What the cases of several suites begin with.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Result, ensure};
use lab::config::{File, Service};
use lab::packet::{Ethernet, Ip};
use lab::{Daemon, Family, Lab, Run};

/// The port of the HTTP service.
pub const HTTP: u16 = 80;
/// The port of the UDP echo service.
pub const ECHO: u16 = 7;

/// A laboratory whose backends serve HTTP and both echoes and decapsulate.
pub fn serving(builder: lab::topology::Builder) -> Result<Lab> {
    let lab = builder.build()?;
    for backend in lab.backends() {
        backend.serve_http(HTTP)?;
        backend.serve_tcp_echo(ECHO)?;
        backend.serve_udp_echo(ECHO)?;
    }
    lab.start_decapsulators()?;
    Ok(lab)
}

/// The service `web`: HTTP on the IPv4 VIP, over every backend's IPv4 address.
pub fn web(lab: &Lab) -> Service {
    Service::tcp(
        "web",
        web_vip(),
        lab.backends().iter().map(|backend| backend.v4()),
    )
}

pub fn web_vip() -> SocketAddr {
    Family::V4.vip_port(HTTP)
}

/// A laboratory's daemon with the service `web`, probed, ready and with every backend in the table.
pub fn probed_web(lab: &Lab) -> Result<Daemon<'_>> {
    Daemon::start(lab, &File::new(vec![web(lab).probed()]))
}

/// A client's TCP or UDP packet to a VIP, taken out of its outer header if it has one.
pub fn client_packet<'a>(frame: &'a [u8]) -> Option<Ip<'a>> {
    let outer = Ethernet::parse(frame)?.ip()?;
    let inner = outer.inner().unwrap_or(outer);
    (lab::address::is_vip(inner.destination) && inner.ports().is_some()).then_some(inner)
}

/// An error unless every failed connection was open at some time in one of the `windows`, in which slots moved.
///
/// A connection whose backend dies or is disabled is lost. That those of other backends are not is shown by the suite
/// `connections`.
pub fn ensure_failed_only_within(run: &Run, windows: &[(Instant, Instant)]) -> Result<()> {
    for failure in run.failures() {
        ensure!(
            windows
                .iter()
                .any(|&(from, to)| failure.started <= to && failure.ended >= from),
            "a connection failed while no slot moved: {:?}, begun {:?} after the first change",
            failure.answer,
            windows
                .first()
                .map(|&(from, _)| failure.started.saturating_duration_since(from)),
        );
    }
    Ok(())
}

/// Whether a frame carries, with or without an outer header, a client's packet to a VIP.
pub fn carries_client_packet(frame: &[u8]) -> bool {
    client_packet(frame).is_some()
}
