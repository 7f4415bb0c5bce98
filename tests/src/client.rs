//! The client: many connections from several addresses, and what became of each.
//!
//! Owns: making requests inside the client's namespace and remembering every single outcome with its time. Does not
//! own: judging them (the suites and the demo do).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::addresses::address;
use crate::netns::Namespace;
use crate::ping;

/// One request from opening to answer. Long enough for one lost SYN (the kernel repeats it after a second).
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// One connection or datagram and what became of it.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub source: IpAddr,
    pub started: Instant,
    pub ended: Instant,
    /// The name of the backend that answered, or why nobody did.
    pub answer: Result<String, String>,
}

/// The outcomes of many attempts.
#[derive(Clone, Debug, Default)]
pub struct Run {
    pub attempts: Vec<Attempt>,
}

impl Run {
    /// Answers per backend name.
    pub fn by_backend(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for name in self
            .attempts
            .iter()
            .filter_map(|attempt| attempt.answer.as_ref().ok())
        {
            *counts.entry(name.clone()).or_default() += 1;
        }
        counts
    }

    pub fn failures(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts
            .iter()
            .filter(|attempt| attempt.answer.is_err())
    }

    /// An error that names the first failures, if there are any.
    pub fn ensure_all_answered(&self) -> Result<&Self> {
        let failed = self.failures().count();
        let first: Vec<String> = self
            .failures()
            .take(3)
            .map(|attempt| {
                format!(
                    "{}: {}",
                    attempt.source,
                    attempt.answer.as_ref().unwrap_err()
                )
            })
            .collect();
        ensure!(
            failed == 0,
            "{failed} of {} attempts failed, for example {}",
            self.attempts.len(),
            first.join("; ")
        );
        Ok(self)
    }
}

/// What an attempt speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Http,
    Udp,
}

/// The client of a laboratory.
pub struct Client {
    namespace: Namespace,
    addresses: usize,
}

impl Client {
    pub(crate) fn new(namespace: Namespace, addresses: usize) -> Self {
        Self {
            namespace,
            addresses,
        }
    }

    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The client's addresses of the family of `destination`.
    pub fn sources(&self, destination: IpAddr) -> Vec<IpAddr> {
        (0..self.addresses)
            .map(|number| match destination {
                IpAddr::V4(_) => address::client_v4(number).into(),
                IpAddr::V6(_) => address::client_v6(number).into(),
            })
            .collect()
    }

    /// One HTTP GET; the answering backend's name.
    pub fn get(&self, vip: SocketAddr) -> Result<String> {
        let attempt = self
            .http(vip, 1, 1)?
            .attempts
            .pop()
            .context("no attempt was made")?;
        attempt
            .answer
            .map_err(|error| anyhow!("GET from {} to {vip}: {error}", attempt.source))
    }

    /// `count` HTTP GETs, each on a connection of its own, `concurrency` at a time, in turn from every address.
    pub fn http(&self, vip: SocketAddr, count: usize, concurrency: usize) -> Result<Run> {
        self.run(Kind::Http, vip, count, concurrency)
    }

    /// `count` datagrams, each from a port of its own, and the echo to each.
    pub fn udp(&self, vip: SocketAddr, count: usize, concurrency: usize) -> Result<Run> {
        self.run(Kind::Udp, vip, count, concurrency)
    }

    fn run(&self, kind: Kind, vip: SocketAddr, count: usize, concurrency: usize) -> Result<Run> {
        let sources = self.sources(vip.ip());
        self.namespace.run(|| {
            local_runtime()?.block_on(async {
                let permits = Arc::new(Semaphore::new(concurrency));
                let mut tasks = JoinSet::new();
                for &source in sources.iter().cycle().take(count) {
                    let permit = permits.clone().acquire_owned().await?;
                    tasks.spawn(async move {
                        let attempt = attempt(kind, source, vip).await;
                        drop(permit);
                        attempt
                    });
                }
                Ok(Run {
                    attempts: tasks.join_all().await,
                })
            })
        })
    }

    /// Keeps opening `rate` connections a second until stopped.
    pub fn start_load(&self, vip: SocketAddr, rate: u32) -> Result<Load> {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(Mutex::new(Vec::new()));
        let sources = self.sources(vip.ip());
        let thread = self.namespace.spawn_thread({
            let (stop, done) = (stop.clone(), done.clone());
            move || -> Result<()> {
                local_runtime()?.block_on(async {
                    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
                    // After a stall, the missed connections are made up for: the load keeps its rate.
                    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
                    let mut tasks = JoinSet::new();
                    for &source in sources.iter().cycle() {
                        ticks.tick().await;
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let done = done.clone();
                        tasks.spawn(async move {
                            let attempt = attempt(Kind::Http, source, vip).await;
                            done.lock()
                                .unwrap_or_else(|poison| poison.into_inner())
                                .push(attempt);
                        });
                        while tasks.try_join_next().is_some() {}
                    }
                    tasks.join_all().await;
                    Ok(())
                })
            }
        })?;
        Ok(Load {
            stop,
            done,
            thread: Some(thread),
        })
    }

    /// A connection that stays open, to a TCP echo server.
    pub fn connect(&self, vip: SocketAddr) -> Result<EchoConnection> {
        self.connect_from(vip, 0)
    }

    /// The same from the client's address with this number.
    pub fn connect_from(&self, vip: SocketAddr, number: usize) -> Result<EchoConnection> {
        let source = *self
            .sources(vip.ip())
            .get(number)
            .context("the client has fewer addresses")?;
        let stream = self.namespace.run(|| -> Result<_> {
            let socket = Socket::new(Domain::for_address(vip), Type::STREAM, Some(Protocol::TCP))?;
            socket.bind(&SocketAddr::new(source, 0).into())?;
            socket
                .connect_timeout(&vip.into(), REQUEST_TIMEOUT)
                .with_context(|| format!("cannot connect from {source} to {vip}"))?;
            socket.set_tcp_nodelay(true)?;
            socket.set_read_timeout(Some(REQUEST_TIMEOUT))?;
            Ok(std::net::TcpStream::from(socket))
        })?;
        Ok(EchoConnection {
            stream: std::io::BufReader::new(stream),
        })
    }

    /// A UDP socket on the client's first address, connected to `destination`: only answers from there arrive.
    pub fn udp_socket(&self, destination: SocketAddr) -> Result<std::net::UdpSocket> {
        self.udp_socket_from(destination, 0)
    }

    /// The same on the client's address with this number.
    pub fn udp_socket_from(
        &self,
        destination: SocketAddr,
        number: usize,
    ) -> Result<std::net::UdpSocket> {
        let source = *self
            .sources(destination.ip())
            .get(number)
            .context("the client has fewer addresses")?;
        self.namespace.run(|| -> Result<_> {
            let socket = std::net::UdpSocket::bind(SocketAddr::new(source, 0))?;
            socket.connect(destination)?;
            socket.set_read_timeout(Some(REQUEST_TIMEOUT))?;
            Ok(socket)
        })
    }

    /// An ICMP echo with `size` bytes of payload; an error if it is not answered unchanged.
    pub fn ping(&self, destination: IpAddr, size: usize) -> Result<()> {
        self.namespace
            .run(|| ping::ping(destination, size))
            .with_context(|| format!("ping of {size} bytes to {destination}"))
    }
}

/// A stream of connections in the background.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<Mutex<Vec<Attempt>>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Load {
    /// Everything finished so far.
    pub fn so_far(&self) -> Run {
        Run {
            attempts: self
                .done
                .lock()
                .unwrap_or_else(|poison| poison.into_inner())
                .clone(),
        }
    }

    /// How many attempts are finished, and how many of them failed.
    pub fn progress(&self) -> (usize, usize) {
        let done = self
            .done
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        (
            done.len(),
            done.iter()
                .filter(|attempt| attempt.answer.is_err())
                .count(),
        )
    }

    /// Opens no more connections, waits for those under way, and returns all outcomes.
    pub fn stop(mut self) -> Result<Run> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread
                .join()
                .map_err(|_| anyhow!("the client's load thread panicked"))??;
        }
        Ok(self.so_far())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A TCP connection through the VIP that lives as long as this value.
pub struct EchoConnection {
    stream: std::io::BufReader<std::net::TcpStream>,
}

impl EchoConnection {
    /// Marks everything sent from now on with a TOS or traffic class.
    pub fn set_tos(&self, tos: u8) -> Result<()> {
        set_tos(
            self.stream.get_ref(),
            self.stream.get_ref().peer_addr()?,
            tos,
        )
    }

    /// How long an echo may take.
    pub fn set_patience(&self, patience: Duration) -> Result<()> {
        Ok(self.stream.get_ref().set_read_timeout(Some(patience))?)
    }

    /// Sends a line and returns the name of the backend that echoed it.
    pub fn exchange(&mut self, line: &str) -> Result<String> {
        use std::io::{BufRead, Write};
        self.stream
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer).context("no echo")?;
        let (name, echo) = answer
            .trim_end()
            .split_once(' ')
            .with_context(|| format!("strange echo {answer:?}"))?;
        ensure!(echo == line, "sent {line:?}, got {echo:?} back");
        Ok(name.to_owned())
    }
}

/// Marks what a socket sends: TOS for IPv4, traffic class for IPv6.
pub fn set_tos(socket: &impl std::os::fd::AsFd, peer: SocketAddr, tos: u8) -> Result<()> {
    let socket = SockRef::from(socket);
    match peer {
        SocketAddr::V4(_) => socket.set_tos_v4(tos.into())?,
        SocketAddr::V6(_) => socket.set_tclass_v6(tos.into())?,
    }
    Ok(())
}

fn local_runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

async fn attempt(kind: Kind, source: IpAddr, vip: SocketAddr) -> Attempt {
    let started = Instant::now();
    let exchange = async {
        match kind {
            Kind::Http => http_get(source, vip).await,
            Kind::Udp => udp_echo(source, vip).await,
        }
    };
    let answer = match tokio::time::timeout(REQUEST_TIMEOUT, exchange).await {
        Ok(answer) => answer.map_err(|error| format!("{error:#}")),
        Err(_) => Err(format!("no answer within {REQUEST_TIMEOUT:?}")),
    };
    Attempt {
        source,
        started,
        ended: Instant::now(),
        answer,
    }
}

async fn http_get(source: IpAddr, vip: SocketAddr) -> Result<String> {
    let socket = if source.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(source, 0)).context("bind")?;
    let mut stream = socket.connect(vip).await.context("connect")?;
    let request = format!("GET / HTTP/1.1\r\nHost: {vip}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.context("send")?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .await
        .context("receive")?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer was cut off")?;
    ensure!(
        head.starts_with("HTTP/1.1 200 "),
        "answered {:?}",
        head.lines().next().unwrap_or_default()
    );
    Ok(body.trim_end().to_owned())
}

async fn udp_echo(source: IpAddr, vip: SocketAddr) -> Result<String> {
    let socket = UdpSocket::bind(SocketAddr::new(source, 0))
        .await
        .context("bind")?;
    socket.connect(vip).await.context("connect")?;
    socket.send(b"question").await.context("send")?;
    let mut buffer = [0u8; 256];
    let length = socket.recv(&mut buffer).await.context("receive")?;
    let answer = String::from_utf8_lossy(&buffer[..length]);
    let (name, echo) = answer
        .split_once(' ')
        .with_context(|| format!("strange echo {answer:?}"))?;
    ensure!(echo == "question", "sent \"question\", got {echo:?} back");
    Ok(name.to_owned())
}
