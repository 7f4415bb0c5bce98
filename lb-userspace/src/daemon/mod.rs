//! The daemon: wires probes, netlink, control socket, metrics and data plane to one owner loop.
//!
//! Owns: start, order, end. Does not own: what is decided (`state`, `plan`), nor how (`owner`).

mod chores;
mod commands;
mod commit;
mod drains;
mod flows;
mod interfaces;
mod kernel_log;
mod overlay;
mod owner;
mod reload;
mod report;
mod seed;
pub mod store;

use std::borrow::Cow;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::api;
use crate::check;
use crate::config;
use crate::dataplane::kernel::KernelDataPlane;
use crate::dataplane::{Adoptable, Pins, objects};
use crate::health::Prober;
use crate::metrics::{self, Snapshot, Source};
use crate::model::Config;
use crate::netlink;
use crate::plan::Installed;

use owner::{Ending, Owner};
use store::Store;

/// Events waiting for the owner; senders wait when it is full.
const QUEUE: usize = 1_024;

/// Runs until SIGTERM, SIGINT or `detach`. SIGTERM leaves the data path forwarding. `object`: a file to load instead of the built-in
/// data path.
///
/// # Errors
/// Whatever keeps it from starting, with the way out. Nothing is attached or replaced then.
pub async fn run(config_path: PathBuf, object: Option<PathBuf>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;

    let config = config::load(&config_path)?;
    require_permissions()?;
    require_interfaces(&config)?;
    let object = match &object {
        None => Cow::Borrowed(objects::BALANCER),
        Some(file) => Cow::Owned(objects::read_balancer(file)?),
    };
    let pins = Pins::new(&config.node.pin);
    let _claimed = pins.claim()?;
    raise_descriptor_limit();
    let control = api::server::bind(&config.socket)?;
    let metrics_listener = match config.metrics_listen {
        Some(address) => Some(TcpListener::bind(address).await.with_context(|| {
            format!("metrics.listen = \"{address}\" cannot be served; choose another, or \"off\"")
        })?),
        None => None,
    };
    let store = Store::open(&config.node.state)?;
    let hash_seed = seed::obtain(&config.node)?;
    let adoptable = Adoptable::find(&pins, &hash_seed, &config.capacity)?;
    let left = adoptable
        .as_ref()
        .map(|adoptable| Installed::adopt(config.capacity, adoptable.found()))
        .transpose()
        .map_err(|error| {
            anyhow!(
                "{error:#}. The data path in force goes on as it is. Give it the room it has; or, to begin anew and reset \
                 connections: `sluice detach`, then start again"
            )
        })?;
    // After all that can be refused for `[capacity]`: run-time changes that find no room in it are dropped from the disk.
    let restored = overlay::restore(&config, store)?;
    let mut plane =
        KernelDataPlane::load_pinned(&object, &hash_seed, &config.capacity, &pins, adoptable)?;
    kernel_log::start(plane.object())?;

    let (health_events, health) = mpsc::channel(QUEUE);
    let (hop_events, hops) = mpsc::channel(QUEUE);
    let (commands, command_queue) = mpsc::channel(QUEUE);
    let (snapshots, snapshot_queue) = mpsc::channel(16);
    let (readiness, not_ready) = watch::channel(vec!["starting".to_owned()]);
    let prober = Prober::spawn(health_events);
    let next_hops = netlink::spawn(hop_events).await.context("netlink")?;

    let stop = CancellationToken::new();
    let control = tokio::spawn(api::server::serve(
        control,
        commands,
        stop.clone().cancelled_owned(),
    ));
    let scrapes = metrics_listener.map(|listener| {
        let source = Scrapes {
            snapshots,
            not_ready,
        };
        tokio::spawn(metrics::serve(
            listener,
            source,
            stop.clone().cancelled_owned(),
        ))
    });

    tracing::info!(config = %config_path.display(), socket = %config.socket.display(), "started");
    let mut owner = Owner::new(
        config_path,
        config,
        restored,
        (plane, left),
        prober,
        next_hops,
        readiness,
    );
    let inputs = owner::Inputs {
        health,
        hops,
        commands: command_queue,
        snapshots: snapshot_queue,
    };
    let ending = owner
        .run(
            inputs,
            async {
                tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                }
            },
            &mut hangup,
        )
        .await;
    match ending {
        Ending::Signal(name) => tracing::info!(
            "{name}: ending; the data path goes on forwarding (`sluice detach` takes it down)"
        ),
        Ending::Detached => tracing::info!("detached: ending"),
    }
    stop.cancel();
    // Open requests are answered (bounded by the servers) before the process ends.
    let _ = control.await;
    if let Some(scrapes) = scrapes {
        let _ = scrapes.await;
    }
    Ok(())
}

/// Without them the first refusal would be some system call's.
fn require_permissions() -> Result<()> {
    let finding = check::host::capabilities(&check::host::effective());
    ensure!(
        finding.severity == check::Severity::Ok,
        "{}: {}: {}",
        finding.what,
        finding.found,
        finding.mend
    );
    Ok(())
}

/// Thousands of backends are probed at once; the usual soft limit of 1,024 descriptors is for programs that use select(2).
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
}

/// Every named interface must exist: a typing error must not become a balancer without traffic.
fn require_interfaces(config: &Config) -> Result<()> {
    for interface in &config.node.interfaces {
        ensure!(
            nix::net::if_::if_nametoindex(interface.as_str()).is_ok(),
            "node.interfaces names {interface:?}, which does not exist here; `ip link` lists the interfaces"
        );
    }
    Ok(())
}

/// The metrics server's way to the owner loop.
struct Scrapes {
    snapshots: mpsc::Sender<oneshot::Sender<Snapshot>>,
    not_ready: watch::Receiver<Vec<String>>,
}

impl Source for Scrapes {
    async fn snapshot(&self) -> Result<Snapshot> {
        let (reply, answer) = oneshot::channel();
        self.snapshots
            .send(reply)
            .await
            .context("the daemon is ending")?;
        answer.await.context("the daemon is ending")
    }

    fn not_ready(&self) -> Vec<String> {
        self.not_ready.borrow().clone()
    }
}
