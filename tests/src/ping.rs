//! ICMP echo, without the `ping` program: not every machine has it.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::client::REQUEST_TIMEOUT;

/// Sends an echo request with `size` bytes of payload from the calling thread's namespace; an error if it is not
/// answered unchanged.
pub(crate) fn ping(destination: IpAddr, size: usize) -> Result<()> {
    let (domain, protocol, request, reply) = match destination {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8u8, 0u8),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.connect(&SocketAddr::new(destination, 0).into())?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let payload: Vec<u8> = (0..size).map(|position| position as u8).collect();
    let mut message = [&[request, 0, 0, 0, 0x5c, 0x1c, 0, 1][..], &payload].concat();
    // The kernel fills in ICMPv6's checksum, because it covers addresses; ICMP's is ours.
    if destination.is_ipv4() {
        let sum = crate::packet::checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let mut buffer = vec![0u8; 65_536];
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    socket.send(&message)?;
    while Instant::now() < deadline {
        use std::io::Read;
        let Ok(length) = (&socket).read(&mut buffer) else {
            // Asked again: the first big answer may only have taught its sender the path's MTU.
            socket.send(&message)?;
            continue;
        };
        // Raw IPv4 sockets deliver the IP header too.
        let header = if destination.is_ipv4() {
            usize::from(buffer[0] & 0x0f) * 4
        } else {
            0
        };
        let Some(answer) = buffer[..length].get(header..) else {
            continue;
        };
        if answer.first() == Some(&reply) && answer.get(4..8) == Some(&message[4..8]) {
            ensure!(answer[8..] == payload, "the answer's payload differs");
            return Ok(());
        }
    }
    anyhow::bail!("no answer within {REQUEST_TIMEOUT:?}")
}
