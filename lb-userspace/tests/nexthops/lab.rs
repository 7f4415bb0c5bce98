//! The namespaces these tests run in, and a resolver at work in one of them.

use std::collections::HashSet;
use std::fs::File;
use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use lb_userspace::netlink::{self, NextHop, NextHopEvent, NextHopState};
use nix::sched::{CloneFlags, setns};
use tokio::sync::mpsc as tokio_mpsc;

/// Long enough for a loaded machine; what is tested to be quick says so.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Two namespaces and the links between them; gone when dropped.
pub struct Lab {
    pub balancer: String,
    pub peer: String,
}

impl Lab {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let id = format!(
            "{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let lab = Self {
            balancer: format!("slnh-{id}-b"),
            peer: format!("slnh-{id}-p"),
        };
        ip(&format!("netns add {}", lab.balancer));
        ip(&format!("netns add {}", lab.peer));
        for namespace in [&lab.balancer, &lab.peer] {
            ip(&format!("-n {namespace} link set lo up"));
            // Without this, neighbour discovery has no link-local source for the first second of a link.
            lab.sysctl(namespace, "ipv6/conf/default/accept_dad", "0");
        }
        for (number, subnet) in [(0, 7), (1, 8)] {
            lab.balancer(&format!(
                "link add eth{number} type veth peer name near{number} netns {}",
                lab.peer
            ));
            lab.peer(&format!(
                "link set near{number} address 02:00:00:00:00:2{number}"
            ));
            lab.peer(&format!("link set near{number} up"));
            lab.balancer(&format!("link set eth{number} up"));
            lab.balancer(&format!("addr add 10.{subnet}.0.1/24 dev eth{number}"));
            lab.balancer(&format!("addr add fd0{subnet}::1/64 dev eth{number} nodad"));
            lab.peer(&format!("addr add 10.{subnet}.0.2/24 dev near{number}"));
            lab.peer(&format!(
                "addr add fd0{subnet}::2/64 dev near{number} nodad"
            ));
        }
        lab.balancer("route add 10.9.0.0/16 via 10.7.0.2");
        lab.balancer("route add fd09::/64 via fd07::2");
        lab
    }

    pub fn balancer(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.balancer));
    }

    pub fn peer(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.peer));
    }

    /// Runs a function in a namespace, on a thread of its own with its own runtime.
    pub fn inside<T: Send + 'static>(
        namespace: &str,
        work: impl AsyncFnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let file = File::open(format!("/run/netns/{namespace}")).unwrap();
        std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(work())
        })
    }

    pub fn sysctl(&self, namespace: &str, key: &str, value: &str) {
        let path = format!("/proc/sys/net/{key}");
        let value = value.to_owned();
        Self::inside(namespace, async move || {
            std::fs::write(path, value).unwrap()
        })
        .join()
        .unwrap();
    }

    pub fn watch(&self, addresses: &[&str]) -> Watcher {
        self.watch_refreshing_every(addresses, Duration::from_secs(30))
    }

    pub fn watch_refreshing_every(&self, addresses: &[&str], refresh: Duration) -> Watcher {
        let (events, received) = channel();
        let (commands, mut orders) = tokio_mpsc::unbounded_channel::<HashSet<IpAddr>>();
        let thread = Self::inside(&self.balancer, async move || {
            let (sender, mut from_resolver) = tokio_mpsc::channel(16);
            let handle = netlink::spawn_refreshing_every(sender, refresh)
                .await
                .unwrap();
            loop {
                tokio::select! {
                    order = orders.recv() => match order {
                        Some(addresses) => handle.watch(addresses),
                        None => return,
                    },
                    Some(event) = from_resolver.recv() => {
                        let _ = events.send(event);
                    }
                }
            }
        });
        let watcher = Watcher {
            events: received,
            commands: Some(commands),
            thread: Some(thread),
        };
        watcher.set(addresses);
        watcher
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in [&self.balancer, &self.peer] {
            let _ = Command::new("ip")
                .args(["netns", "del", namespace])
                .status();
        }
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A resolver at work in the balancer's namespace.
pub struct Watcher {
    events: Receiver<NextHopEvent>,
    commands: Option<tokio_mpsc::UnboundedSender<HashSet<IpAddr>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watcher {
    pub fn set(&self, addresses: &[&str]) {
        let addresses = addresses
            .iter()
            .map(|address| address.parse().unwrap())
            .collect();
        self.commands.as_ref().unwrap().send(addresses).unwrap();
    }

    pub fn next(&self, within: Duration) -> NextHopEvent {
        self.events
            .recv_timeout(within)
            .unwrap_or_else(|e| panic!("no event within {within:?}: {e}"))
    }

    pub fn resolved(&self) -> NextHop {
        match self.next(PATIENCE).state {
            NextHopState::Resolved(next_hop) => next_hop,
            NextHopState::Unresolved(why) => panic!("unresolved: {why}"),
        }
    }

    /// As `resolved`, on a link that has just come up: the kernel may swallow the first questions.
    pub fn resolved_at_last(&self) -> NextHop {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self
                .next(deadline.saturating_duration_since(Instant::now()))
                .state
            {
                NextHopState::Resolved(next_hop) => return next_hop,
                NextHopState::Unresolved(why) => assert!(why.contains("has not answered"), "{why}"),
            }
        }
    }

    pub fn unresolved(&self, within: Duration) -> String {
        match self.next(within).state {
            NextHopState::Unresolved(why) => why,
            NextHopState::Resolved(next_hop) => panic!("resolved: {next_hop:?}"),
        }
    }

    pub fn silent_for(&self, time: Duration) {
        match self.events.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => {}
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.commands.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
