//! The servers of a backend: HTTP, TCP echo, UDP echo, each answering with the backend's name.
//!
//! Owns: the protocols and what they count. All run on one runtime of the process; only their sockets, which `backend`
//! makes, belong to a namespace.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Result;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::addresses::address;

/// The path that health probes ask for.
pub const HEALTH_PATH: &str = "/healthz";
const BACKLOG: i32 = 8_192;
/// A request, or the pause before one, that takes longer than this is given up: no server task outlives its test by much.
const REQUEST_TIME: Duration = Duration::from_secs(60);

/// What a backend's servers saw. Only traffic to a VIP is counted as service; the rest is probes.
#[derive(Debug, Default)]
pub struct Counters {
    /// TCP connections accepted on a VIP.
    pub accepted: AtomicU64,
    /// HTTP requests answered on a VIP.
    pub served: AtomicU64,
    /// UDP datagrams answered on a VIP.
    pub datagrams: AtomicU64,
    /// HTTP requests answered on the backend's own address.
    pub probes: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Http(u16),
    TcpEcho(u16),
    UdpEcho(u16),
}

/// What the servers of one backend share.
pub(crate) struct Shared {
    pub name: String,
    pub counters: Counters,
    /// What the health path answers.
    pub health_status: AtomicU16,
}

/// The runtime that all servers of this process share.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("backends")
            .enable_all()
            .build()
            .expect("a runtime of two threads can be made")
    })
}

/// Listens on every address of both families.
pub(crate) fn listen(port: u16) -> Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

pub(crate) async fn accept(
    listener: TcpListener,
    server: Server,
    shared: Arc<Shared>,
    reset: watch::Receiver<bool>,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let (shared, mut reset) = (shared.clone(), reset.clone());
        tokio::spawn(async move {
            let mut stream = stream;
            let _ = stream.set_nodelay(true);
            let to_vip = stream
                .local_addr()
                .is_ok_and(|local| address::is_vip(local.ip().to_canonical()));
            if to_vip {
                shared.counters.accepted.fetch_add(1, Ordering::Relaxed);
            }
            let served = match server {
                Server::TcpEcho(_) => echo_lines(&mut stream, &shared.name, &mut reset).await,
                _ => answer_requests(&mut stream, &shared, to_vip, &mut reset).await,
            };
            if served.is_err() {
                // A process that dies with unread input resets its connections; so does this.
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
        });
    }
}

/// Reads until `end` is in the buffer. `Ok(false)`: the client closed. An error: read failed, the backend died, or the client
/// has been silent for too long.
async fn read_until(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    end: &[u8],
    reset: &mut watch::Receiver<bool>,
) -> Result<bool> {
    let deadline = tokio::time::Instant::now() + REQUEST_TIME;
    while !buffer.windows(end.len()).any(|window| window == end) {
        tokio::select! {
            biased;
            _ = reset.wait_for(|reset| *reset) => anyhow::bail!("killed"),
            () = tokio::time::sleep_until(deadline) => anyhow::bail!("nothing was asked"),
            read = stream.read_buf(buffer) => if read? == 0 { return Ok(false) },
        }
    }
    Ok(true)
}

/// HTTP/1.1, enough of it: GET without body, one answer per request, closing when asked to.
///
/// Dying is only possible while reading. From the moment an answer is counted it is also sent, so that `served` is
/// exactly the number of answers that clients can have got.
async fn answer_requests(
    stream: &mut TcpStream,
    shared: &Shared,
    to_vip: bool,
    reset: &mut watch::Receiver<bool>,
) -> Result<()> {
    let mut buffer = Vec::with_capacity(512);
    while read_until(stream, &mut buffer, b"\r\n\r\n", reset).await? {
        let request = String::from_utf8_lossy(&buffer).to_ascii_lowercase();
        let health = request.split(' ').nth(1) == Some(HEALTH_PATH);
        let close = request.contains("connection: close") || !request.contains("http/1.1");
        let status = if health {
            shared.health_status.load(Ordering::Relaxed)
        } else {
            200
        };
        let reason = if status == 200 {
            "OK"
        } else {
            "Service Unavailable"
        };
        let body = format!("{}\n", shared.name);
        let connection = if close { "close" } else { "keep-alive" };
        let counter = if to_vip {
            &shared.counters.served
        } else {
            &shared.counters.probes
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let answer = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await?;
        if close {
            break;
        }
        buffer.clear();
    }
    stream.shutdown().await?;
    Ok(())
}

async fn echo_lines(
    stream: &mut TcpStream,
    name: &str,
    reset: &mut watch::Receiver<bool>,
) -> Result<()> {
    let mut buffer = Vec::with_capacity(512);
    while read_until(stream, &mut buffer, b"\n", reset).await? {
        stream.write_all(format!("{name} ").as_bytes()).await?;
        stream.write_all(&buffer).await?;
        buffer.clear();
    }
    Ok(())
}

pub(crate) async fn echo_datagrams(socket: UdpSocket, shared: Arc<Shared>) {
    let mut buffer = vec![0u8; 65_536];
    loop {
        // Errors are ICMP answers to earlier datagrams; the next call goes on.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let answer = [shared.name.as_bytes(), b" ", &buffer[..length]].concat();
        shared.counters.datagrams.fetch_add(1, Ordering::Relaxed);
        let _ = socket.send_to(&answer, peer).await;
    }
}
