//! How a packet reaches a backend: the outer header byte for byte, the inner packet untouched, the answer direct.

mod special;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::capture::SETTLE;
use lab::client::set_tos;
use lab::config::{File, Service};
use lab::packet::{
    self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, GUE_HEADER, GUE_PORT, IPPROTO_IPV4, IPPROTO_IPV6,
    IPPROTO_UDP, checksum,
};
use lab::{Capture, Daemon, Direction, Family, Frame, Lab, address, mac, wait_until};
use lb_userspace::model::XdpMode;

use crate::Suites;
use crate::setup::{ECHO, carries_client_packet, client_packet, serving};

/// Not a usual value, so that a copied one is told from a constant: DSCP AF11.
const TOS: u8 = 0x28;

pub fn add(suites: &mut Suites) {
    for client in Family::BOTH {
        for backend in Family::BOTH {
            for protocol in ["tcp", "udp"] {
                for forward in ["ipip", "gue"] {
                    let through = if forward == "gue" { "gue_" } else { "" };
                    let families = format!("{}in{}", client.digit(), backend.digit());
                    let name = format!("{through}{families}_{protocol}");
                    suites.case("forward", name, move || {
                        Case {
                            client,
                            backend,
                            protocol,
                            forward,
                            ..IPIP
                        }
                        .run()
                    });
                }
            }
        }
        for protocol in ["tcp", "udp"] {
            let name = format!("l2_v{}_{protocol}", client.digit());
            suites.case("forward", name, move || {
                Case {
                    client,
                    backend: client,
                    protocol,
                    forward: "l2",
                    ..IPIP
                }
                .run()
            });
        }
    }
    suites.case("forward", "generic_mode", || {
        Case {
            xdp_mode: "generic",
            ..IPIP
        }
        .run()
    });
    suites.case("forward", "gue_generic_mode", || {
        Case {
            forward: "gue",
            xdp_mode: "generic",
            ..IPIP
        }
        .run()
    });
    suites.case("forward", "two_armed_redirect_v4", || {
        Case {
            two_armed: true,
            ..IPIP
        }
        .run()
    });
    suites.case("forward", "two_armed_redirect_v6", || {
        Case {
            two_armed: true,
            client: Family::V6,
            backend: Family::V6,
            ..IPIP
        }
        .run()
    });
    special::add(suites);
}

#[derive(Clone, Copy)]
struct Case {
    client: Family,
    backend: Family,
    protocol: &'static str,
    forward: &'static str,
    xdp_mode: &'static str,
    two_armed: bool,
}

const IPIP: Case = Case {
    client: Family::V4,
    backend: Family::V4,
    protocol: "tcp",
    forward: "ipip",
    xdp_mode: "native",
    two_armed: false,
};

impl Case {
    fn laboratory(self) -> Result<Lab> {
        let builder = Lab::builder().backends(1).two_armed(self.two_armed);
        serving(if self.xdp_mode == "generic" {
            builder.generic_only()
        } else {
            builder
        })
    }

    fn file(self) -> File {
        let vip = self.client.vip_port(ECHO);
        let backends = [self.backend.backend(1)];
        let service = match self.protocol {
            "tcp" => Service::tcp("echo", vip, backends),
            _ => Service::udp("echo", vip, backends),
        };
        let mut file = File::new(vec![service.forward(self.forward)]);
        file.xdp_mode = self.xdp_mode;
        file
    }

    fn daemon(self, lab: &Lab) -> Result<Daemon<'_>> {
        Daemon::start(lab, &self.file())
    }

    fn run(self) -> Result<()> {
        let lab = self.laboratory()?;
        let daemon = self.daemon(&lab)?;
        let got = daemon.status()?.interfaces[0].got;
        let wanted = if self.xdp_mode == "native" {
            XdpMode::Native
        } else {
            XdpMode::Generic
        };
        ensure!(got == Some(wanted), "attached as {got:?}, not {wanted:?}");

        let captures = Captures::start(&lab)?;
        self.exchange(&lab)?;
        let (delivered, sent) = captures.stop()?;
        ensure!(
            delivered.len() >= 3,
            "only {} client packets reached the balancer",
            delivered.len()
        );
        for (delivered, sent) in delivered.iter().zip(&sent) {
            self.compare(delivered, sent)?;
        }
        let tos = sent
            .iter()
            .filter_map(|frame| client_packet(&frame.bytes))
            .filter(|packet| packet.tos == TOS);
        ensure!(
            tos.count() > 0,
            "no packet carried the TOS that the client set"
        );
        Ok(())
    }

    /// Some packets of a client with TOS set, and their answers.
    fn exchange(self, lab: &Lab) -> Result<()> {
        let vip = self.client.vip_port(ECHO);
        if self.protocol == "tcp" {
            let mut connection = lab.client().connect(vip)?;
            connection.exchange("first")?;
            connection.set_tos(TOS)?;
            connection.exchange("second")?;
        } else {
            // The socket is connected to the VIP: an answer from anywhere else would not arrive.
            let socket = lab.client().udp_socket(vip)?;
            set_tos(&socket, vip, TOS)?;
            for length in [0usize, 1, 300, 1_200] {
                let question = vec![b'q'; length];
                socket.send(&question)?;
                let mut buffer = [0u8; 2_048];
                let got = socket
                    .recv(&mut buffer)
                    .with_context(|| format!("no echo of {length} bytes"))?;
                ensure!(
                    buffer[..got] == [b"backend1 ".as_slice(), &question].concat(),
                    "another echo"
                );
            }
        }
        Ok(())
    }

    /// `sent` must be `delivered` in the outer header this case asks for.
    fn compare(self, delivered: &Frame, sent: &Frame) -> Result<()> {
        let delivered = delivered
            .ethernet()
            .and_then(|frame| frame.ip())
            .context("no IP was delivered")?;
        let ethernet = sent.ethernet().context("no Ethernet was sent")?;
        ensure!(
            ethernet.destination == mac::backend(1),
            "Ethernet destination {:02x?}",
            ethernet.destination
        );
        ensure!(
            ethernet.source == mac::BALANCER,
            "Ethernet source {:02x?}",
            ethernet.source
        );
        if self.forward == "l2" {
            ensure!(
                ethernet.payload == delivered.bytes,
                "the packet was changed"
            );
            return Ok(());
        }
        let header = outer_header(self, delivered.bytes, delivered.tos, ethernet.payload)?;
        let outer_length = header.len();
        let seen = ethernet
            .payload
            .get(..outer_length)
            .context("a cut outer header")?;
        ensure!(
            seen == header,
            "outer header\n     is {seen:02x?}\nmust be {header:02x?}"
        );
        ensure!(
            &ethernet.payload[outer_length..] == delivered.bytes,
            "the inner packet was changed"
        );
        let ethertype = if self.backend == Family::V4 {
            ETHERTYPE_IPV4
        } else {
            ETHERTYPE_IPV6
        };
        ensure!(
            ethernet.ethertype == ethertype,
            "Ethernet type {:#06x}",
            ethernet.ethertype
        );
        Ok(())
    }
}

/// The header that must stand before `inner`. What a sender may choose freely (IPv4 identification, IPv6 flow label, of GUE a
/// dynamic UDP source port) is taken from `seen`.
fn outer_header(case: Case, inner: &[u8], tos: u8, seen: &[u8]) -> Result<Vec<u8>> {
    let inner_protocol = if case.client == Family::V4 {
        IPPROTO_IPV4
    } else {
        IPPROTO_IPV6
    };
    let (protocol, behind) = if case.forward == "gue" {
        let gue = gue_header(case, inner_protocol, inner.len(), seen)?;
        (IPPROTO_UDP, gue)
    } else {
        (inner_protocol, Vec::new())
    };
    let payload = [&behind, inner].concat();
    let (source, destination) = (case.backend.balancer(), case.backend.backend(1));
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = packet::ipv4(source, destination, protocol, &[], &payload);
            header.truncate(20);
            header[1] = tos;
            header[4..6].copy_from_slice(seen.get(4..6).context("a cut outer header")?);
            header[6..8].copy_from_slice(&[0x40, 0]); // DF, no fragment
            header[10..12].copy_from_slice(&[0, 0]);
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header.extend(behind);
            Ok(header)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = packet::ipv6(source, destination, protocol, &payload);
            header.truncate(40);
            let label = seen.get(1..4).context("a cut outer header")?;
            header[0] = 0x60 | tos >> 4;
            header[1] = tos << 4 | label[0] & 0x0f;
            header[2..4].copy_from_slice(&label[1..]);
            header.extend(behind);
            Ok(header)
        }
        _ => bail!("source and destination are of different families"),
    }
}

/// The headers of UDP and GUE that must stand before an inner packet of this length.
fn gue_header(case: Case, protocol: u8, inner: usize, seen: &[u8]) -> Result<Vec<u8>> {
    let udp = match case.backend {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    let port = seen.get(udp..udp + 2).context("a cut outer header")?;
    ensure!(port[0] >= 0xc0, "the UDP source port is {port:02x?}");
    let mut header = port.to_vec();
    header.extend(GUE_PORT.to_be_bytes());
    header.extend((8 + GUE_HEADER as u16 + inner as u16).to_be_bytes());
    header.extend([0, 0]); // no checksum
    header.extend([0, protocol, 0, 0]);
    Ok(header)
}

/// What the router gave the balancer, what the balancer sent to backend 1, and what it must never send: answers.
struct Captures {
    delivered: Capture,
    sent: Capture,
    answers: Capture,
}

impl Captures {
    fn start(lab: &Lab) -> Result<Self> {
        let from_vip = |frame: &[u8]| {
            packet::Ethernet::parse(frame)
                .and_then(|frame| frame.ip())
                .is_some_and(|ip| address::is_vip(ip.source))
        };
        Ok(Self {
            delivered: Capture::start(
                lab.router(),
                lab.balancer_port(),
                Direction::Out,
                carries_client_packet,
            )?,
            sent: Capture::start(
                lab.router(),
                &lab.backend(1).port(),
                Direction::Out,
                carries_client_packet,
            )?,
            answers: Capture::count(lab.router(), lab.balancer_port(), Direction::In, from_vip)?,
        })
    }

    fn stop(self) -> Result<(Vec<Frame>, Vec<Frame>)> {
        // The last ACK may still be on its way.
        let _ = wait_until("all packets to arrive", SETTLE, || {
            Ok(self.delivered.seen() == self.sent.seen())
        });
        std::thread::sleep(Duration::from_millis(20));
        ensure!(
            self.answers.stop_counting()? == 0,
            "answers of the VIP went through the balancer"
        );
        let (delivered, sent) = (self.delivered.stop()?, self.sent.stop()?);
        ensure!(
            delivered.len() == sent.len(),
            "{} packets came, {} were sent",
            delivered.len(),
            sent.len()
        );
        Ok((delivered, sent))
    }
}
