//! A backend: a host with servers, a decapsulator, and the faults a test injects into it.
//!
//! Owns: what listens, its dying and reviving. Does not own: the protocols spoken (`server`).

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use socket2::SockRef;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::addresses::{VIPS, address};
use crate::interface::xdp_mode;
use crate::netns::Namespace;
use crate::process::{Process, sluice_binary};
use crate::server::{Counters, Server, Shared, accept, echo_datagrams, listen, runtime};
use crate::wait::wait_for;

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
        let attached = wait_for(&what, Duration::from_secs(20), || {
            if xdp_mode(&self.namespace, "eth0")?.is_some() {
                return Ok(Some(Ok(())));
            }
            let ended = match self.decapsulator().as_mut() {
                Some(process) => process.try_wait()?,
                None => bail!("it was not started"),
            };
            // No use in waiting for a program that has ended.
            Ok(ended.map(|status| Err(anyhow::anyhow!("`sluice decap` ended with {status}"))))
        });
        attached.and_then(|attached| attached).with_context(|| {
            let said = self
                .decapsulator()
                .as_ref()
                .map(Process::log_tail)
                .unwrap_or_default();
            format!(
                "{} has no decapsulator; `sluice decap` said:\n{said}",
                self.name()
            )
        })
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
