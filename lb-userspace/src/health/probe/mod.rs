//! One probe of one target, and its outcome in an operator's words.
//!
//! Owns: what goes over the wire. Does not own: when, how often, or what outcomes add up to.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::{TcpSocket, TcpStream};

use super::ProbeTarget;
use crate::model::ProbeKind;

pub mod http;
pub mod tcp;

/// Why a probe did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeFailure {
    /// The target failed: this counts.
    Target(String),
    /// This host could not make the probe. It says nothing of the target: a balancer that runs out of file
    /// descriptors must not take every backend down.
    Local(String),
}

/// Makes one probe, within the target's timeout; gives the time until the target's answer.
pub async fn once(target: &ProbeTarget) -> Result<Duration, ProbeFailure> {
    let attempt = async {
        match &target.kind {
            ProbeKind::None => Ok(Duration::ZERO),
            ProbeKind::Tcp => tcp::probe(target.address).await,
            ProbeKind::Http { path, host, expect } => {
                http::probe(target.address, path, host.as_deref(), *expect).await
            }
        }
    };
    tokio::time::timeout(target.timeout, attempt)
        .await
        .unwrap_or_else(|_| {
            let timeout = humantime::format_duration(target.timeout);
            Err(ProbeFailure::Target(format!("no answer within {timeout}")))
        })
}

/// Connects so that closing sends RST: probes leave no sockets in TIME_WAIT, which at thousands of probes per
/// second would use up this host's ports.
async fn connect(address: SocketAddr) -> Result<(TcpStream, Instant), ProbeFailure> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(|e| describe(&e))?;
    socket.set_zero_linger().map_err(|e| describe(&e))?;
    let start = Instant::now();
    let stream = socket.connect(address).await.map_err(|e| describe(&e))?;
    Ok((stream, start))
}

/// An error of the socket in words, and whose fault it is.
fn describe(error: &io::Error) -> ProbeFailure {
    use ProbeFailure::{Local, Target};
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Target("connection refused".into()),
        Some(libc::ECONNRESET | libc::EPIPE) => Target("connection reset".into()),
        Some(libc::ECONNABORTED) => Target("connection aborted".into()),
        Some(libc::EHOSTUNREACH) => Target("no route to host".into()),
        Some(libc::ENETUNREACH) => Target("network is unreachable".into()),
        Some(libc::ETIMEDOUT) => Target("connection timed out".into()),
        Some(libc::EMFILE) => Local(
            "this process has too many open files to probe: raise LimitNOFILE of the service"
                .into(),
        ),
        Some(libc::ENFILE) => {
            Local("this host has too many open files to probe: raise fs.file-max".into())
        }
        Some(libc::EADDRNOTAVAIL) => Local(
            "this host has no free local port to probe from: widen net.ipv4.ip_local_port_range"
                .into(),
        ),
        Some(libc::ENOBUFS | libc::ENOMEM) => {
            Local("this host has no memory left for a socket".into())
        }
        Some(libc::EPERM | libc::EACCES) => {
            Local("this host's own firewall or policy refuses to send the probe".into())
        }
        _ if error.kind() == io::ErrorKind::UnexpectedEof => Target("connection closed".into()),
        // The operating system's words, without Rust's `(os error 5)`.
        Some(code) => {
            let words = error.to_string();
            Target(
                words
                    .trim_end_matches(&format!(" (os error {code})"))
                    .to_lowercase(),
            )
        }
        None => Target(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_like_sentences_not_like_dumps() {
        let words = |code| match describe(&io::Error::from_raw_os_error(code)) {
            ProbeFailure::Target(words) => words,
            ProbeFailure::Local(words) => format!("local: {words}"),
        };
        assert_eq!(words(libc::ECONNREFUSED), "connection refused");
        assert_eq!(words(libc::EHOSTUNREACH), "no route to host");
        assert_eq!(words(libc::EPROTO), "protocol error");
        assert!(words(libc::EMFILE).starts_with("local: "));
    }
}
