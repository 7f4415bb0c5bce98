//! What the cases of several suites begin with.

use std::net::SocketAddr;

use anyhow::Result;
use lab::config::{File, Service};
use lab::packet::{Ethernet, Ip};
use lab::{Daemon, Family, Lab};

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

/// The packet of a client to a VIP, inside a frame to a backend: taken out of its outer header if it has one.
pub fn client_packet<'a>(frame: &'a [u8]) -> Option<Ip<'a>> {
    let outer = Ethernet::parse(frame)?.ip()?;
    let inner = outer.inner().unwrap_or(outer);
    lab::address::is_vip(inner.destination).then_some(inner)
}

/// Whether a frame carries, with or without an outer header, a client's packet to a VIP.
pub fn carries_client_packet(frame: &[u8]) -> bool {
    client_packet(frame).is_some()
}
