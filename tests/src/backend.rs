//! A backend: its servers, its decapsulator, and the faults a test injects into it.
//!
//! Owns: HTTP, TCP echo and UDP echo servers that answer with the backend's name, and what they counted. Servers run
//! on one shared runtime; only their sockets belong to the backend's namespace.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::interface::xdp_mode;
use crate::netns::Namespace;
use crate::process::{Process, sluice_binary};
use crate::topology::{VIPS, address};
use crate::wait::wait_until;

/// The path that health probes ask for.
pub const HEALTH_PATH: &str = "/healthz";
const BACKLOG: i32 = 8_192;
/// A request that takes longer than this is given up: no server task outlives its test by much.
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
enum Server {
    Http(u16),
    TcpEcho(u16),
    UdpEcho(u16),
}

/// One backend of a laboratory.
pub struct Backend {
    number: usize,
    namespace: Namespace,
    directory: PathBuf,
    shared: Arc<Shared>,
    servers: Mutex<Vec<Server>>,
    /// Listening tasks and the switch that resets everything they started.
    running: Mutex<Option<Running>>,
    decapsulator: Mutex<Option<Process>>,
}

struct Running {
    reset: watch::Sender<bool>,
    listeners: Vec<JoinHandle<()>>,
}

struct Shared {
    name: String,
    counters: Counters,
    health_status: AtomicU16,
}

impl Backend {
    pub(crate) fn new(number: usize, namespace: Namespace, directory: PathBuf) -> Self {
        let shared = Shared {
            name: format!("backend{number}"),
            counters: Counters::default(),
            health_status: AtomicU16::new(200),
        };
        Self {
            number,
            namespace,
            directory,
            shared: Arc::new(shared),
            servers: Mutex::default(),
            running: Mutex::default(),
            decapsulator: Mutex::default(),
        }
    }

    /// From 1.
    pub fn number(&self) -> usize {
        self.number
    }

    pub fn name(&self) -> &str {
        &self.shared.name
    }

    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    pub fn v4(&self) -> IpAddr {
        address::backend_v4(self.number).into()
    }

    pub fn v6(&self) -> IpAddr {
        address::backend_v6(self.number).into()
    }

    /// The router's port towards this backend: outgoing frames there are what the balancer sent it.
    pub fn port(&self) -> String {
        format!("b{}", self.number)
    }

    /// Serves HTTP on `port` of every address: any path answers with the backend's name, `/healthz` with the status
    /// of [`Backend::set_health_status`].
    pub fn serve_http(&self, port: u16) -> Result<()> {
        self.add(Server::Http(port))
    }

    /// Echoes lines on `port` of every address, each after the backend's name, for as long as the client likes.
    pub fn serve_tcp_echo(&self, port: u16) -> Result<()> {
        self.add(Server::TcpEcho(port))
    }

    /// Answers datagrams to a VIP's `port` with the backend's name, a space, and the datagram.
    pub fn serve_udp_echo(&self, port: u16) -> Result<()> {
        self.add(Server::UdpEcho(port))
    }

    /// What `/healthz` answers from now on.
    pub fn set_health_status(&self, status: u16) {
        self.shared.health_status.store(status, Ordering::Relaxed);
    }

    /// What a dead process looks like from outside: nothing listens, every connection is reset.
    pub fn kill(&self) {
        let Some(running) = self.running().take() else {
            return;
        };
        for listener in &running.listeners {
            listener.abort();
        }
        running.reset.send_replace(true);
        // A listener closes when its task has really ended.
        runtime().block_on(async {
            for listener in running.listeners {
                let _ = listener.await;
            }
        });
    }

    /// The process is started again, with the same servers.
    pub fn revive(&self) -> Result<()> {
        let servers = self
            .servers
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
            .clone();
        servers
            .into_iter()
            .try_for_each(|server| self.start(server))
    }

    /// The cable is pulled.
    pub fn drop_off_network(&self) -> Result<()> {
        self.namespace.ip_batch("link set eth0 down\n")
    }

    /// The cable is back. The kernel forgot the IPv6 address and the routes with the link.
    pub fn return_to_network(&self) -> Result<()> {
        self.namespace.ip_batch(&format!(
            "link set eth0 up\naddr replace {}/64 dev eth0 nodad\n\
             route replace default via 10.0.0.1\nroute replace ::/0 via 2001:db8:1::1\n",
            self.v6()
        ))
    }

    pub(crate) fn launch_decapsulator(&self) -> Result<()> {
        let mut command = self.namespace.command(sluice_binary()?);
        command.args(["decap", "--interface", "eth0"]);
        let log = self.directory.join(format!("{}-decap.log", self.name()));
        let process = Process::start("sluice decap", command, &log)?;
        *self.decapsulator() = Some(process);
        Ok(())
    }

    pub(crate) fn wait_for_decapsulator(&self) -> Result<()> {
        let what = format!("the decapsulator of {} to be attached", self.name());
        wait_until(&what, Duration::from_secs(20), || {
            Ok(xdp_mode(&self.namespace, "eth0")?.is_some())
        })
        .map_err(|error| {
            let tail = self
                .decapsulator()
                .as_ref()
                .map(Process::log_tail)
                .unwrap_or_default();
            error.context(format!("`sluice decap` said:\n{tail}"))
        })?;
        Ok(())
    }

    /// Stops the servers and the decapsulator.
    pub(crate) fn shut_down(&self) {
        self.kill();
        drop(self.decapsulator().take());
    }

    fn add(&self, server: Server) -> Result<()> {
        self.servers
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
            .push(server);
        self.start(server)
    }

    fn start(&self, server: Server) -> Result<()> {
        let mut guard = self.running();
        let running = guard.get_or_insert_with(|| Running {
            reset: watch::channel(false).0,
            listeners: Vec::new(),
        });
        let _runtime = runtime().enter();
        match server {
            Server::Http(port) | Server::TcpEcho(port) => {
                let listener = self
                    .namespace
                    .run(|| listen(port))
                    .with_context(|| format!("{} cannot listen on port {port}", self.name()))?;
                let listener = TcpListener::from_std(listener)?;
                let task = accept(
                    listener,
                    server,
                    self.shared.clone(),
                    running.reset.subscribe(),
                );
                running.listeners.push(runtime().spawn(task));
            }
            Server::UdpEcho(port) => {
                let vips = (0..VIPS)
                    .flat_map(|n| {
                        [
                            IpAddr::from(address::vip_v4(n)),
                            IpAddr::from(address::vip_v6(n)),
                        ]
                    })
                    .map(|vip| SocketAddr::new(vip, port));
                for vip in vips {
                    let socket = self
                        .namespace
                        .run(|| std::net::UdpSocket::bind(vip))
                        .with_context(|| format!("{} cannot bind {vip}", self.name()))?;
                    socket.set_nonblocking(true)?;
                    SockRef::from(&socket).set_recv_buffer_size(4 << 20)?;
                    let socket = UdpSocket::from_std(socket)?;
                    running
                        .listeners
                        .push(runtime().spawn(echo_datagrams(socket, self.shared.clone())));
                }
            }
        }
        Ok(())
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.running
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    fn decapsulator(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.decapsulator
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }
}

/// The runtime that all servers of this process share.
fn runtime() -> &'static Runtime {
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
fn listen(port: u16) -> Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

async fn accept(
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
            let serve = async {
                match server {
                    Server::TcpEcho(_) => echo_lines(&mut stream, &shared.name, &mut reset).await,
                    _ => answer_requests(&mut stream, &shared, to_vip, &mut reset).await,
                }
            };
            if !matches!(tokio::time::timeout(REQUEST_TIME, serve).await, Ok(Ok(()))) {
                // A process that dies with unread input resets its connections; so does this.
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
        });
    }
}

/// Reads until `end` is in the buffer. `Ok(false)`: the client closed. An error: read failed, or the backend died.
async fn read_until(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    end: &[u8],
    reset: &mut watch::Receiver<bool>,
) -> Result<bool> {
    while !buffer.windows(end.len()).any(|window| window == end) {
        tokio::select! {
            biased;
            _ = reset.wait_for(|reset| *reset) => anyhow::bail!("killed"),
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

async fn echo_datagrams(socket: UdpSocket, shared: Arc<Shared>) {
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
