//! The laboratory judged by itself, without a balancer: if this fails, the other suites mean nothing.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::capture::SETTLE;
use lab::packet::Ethernet;
use lab::{Capture, Direction, Family, Lab, netns, registry, wait_until};

use crate::Suites;

pub fn add(suites: &mut Suites) {
    suites.case("laboratory", "routes_between_client_and_backends", routes);
    suites.case("laboratory", "two_armed_routes", two_armed_routes);
    suites.case(
        "laboratory",
        "capture_sees_every_frame",
        capture_sees_every_frame,
    );
    suites.case(
        "laboratory",
        "killed_backend_refuses_and_revives",
        kill_and_revive,
    );
    suites.case("laboratory", "pulled_cable_and_back", cable);
    suites.case(
        "laboratory",
        "nothing_is_left_after_drop_and_panic",
        nothing_left,
    );
    suites.case("laboratory", "dead_laboratories_are_swept", sweep);
}

fn routes() -> Result<()> {
    let begun = Instant::now();
    let lab = Lab::builder().backends(3).build()?;
    println!("laboratory of 3 backends stood after {:?}", begun.elapsed());
    reaches_everything(&lab)
}

fn two_armed_routes() -> Result<()> {
    let lab = Lab::builder().backends(2).two_armed(true).build()?;
    lab.client().ping("10.0.1.2".parse()?, 56)?;
    lab.client().ping("2001:db8:2::2".parse()?, 56)?;
    reaches_everything(&lab)
}

fn reaches_everything(lab: &Lab) -> Result<()> {
    for backend in lab.backends() {
        backend.serve_http(80)?;
        for address in [backend.v4(), backend.v6()] {
            ensure!(lab.client().get(SocketAddr::new(address, 80))? == backend.name());
        }
    }
    for family in Family::BOTH {
        lab.client().ping(family.balancer(), 56)?;
        lab.client().ping(family.balancer(), 4_000)?;
    }
    Ok(())
}

fn capture_sees_every_frame() -> Result<()> {
    let lab = Lab::builder().backends(1).build()?;
    let backend = lab.backend(1);
    backend.serve_http(80)?;
    let target = SocketAddr::new(backend.v4(), 80);
    let syns = |frame: &[u8]| {
        Ethernet::parse(frame)
            .and_then(|frame| frame.ip())
            .is_some_and(|ip| ip.opens_a_flow())
    };
    let capture = Capture::start(lab.router(), &backend.port(), Direction::Out, syns)?;
    let wrong_way = Capture::count(lab.router(), &backend.port(), Direction::In, syns)?;
    lab.client()
        .http(target, 1_000, 50)?
        .ensure_all_answered()?;
    let frames = capture.stop()?;
    ensure!(
        frames.len() == 1_000,
        "{} SYNs captured of 1,000 connections",
        frames.len()
    );
    ensure!(
        wrong_way.stop_counting()? == 0,
        "SYNs were seen in the wrong direction"
    );
    // Requests to the backend's own address are no service of a VIP.
    ensure!(backend.counters().probes.load(Ordering::Relaxed) == 1_000);
    ensure!(backend.counters().served.load(Ordering::Relaxed) == 0);
    Ok(())
}

fn kill_and_revive() -> Result<()> {
    let lab = Lab::builder().backends(1).build()?;
    let backend = lab.backend(1);
    backend.serve_http(80)?;
    backend.serve_tcp_echo(7)?;
    let target = SocketAddr::new(backend.v6(), 80);
    let mut open = lab.client().connect(SocketAddr::new(backend.v4(), 7))?;
    ensure!(open.exchange("hello")? == "backend1");

    backend.kill();
    let refused = lab.client().get(target).unwrap_err();
    ensure!(format!("{refused:#}").contains("refused"), "{refused:#}");
    ensure!(
        open.exchange("still there?").is_err(),
        "an open connection outlived the process"
    );

    backend.revive()?;
    lab.client().get(target)?;
    lab.client()
        .connect(SocketAddr::new(backend.v4(), 7))?
        .exchange("again")?;
    Ok(())
}

fn cable() -> Result<()> {
    let lab = Lab::builder().backends(1).build()?;
    let backend = lab.backend(1);
    backend.serve_http(80)?;
    backend.drop_off_network()?;
    ensure!(
        lab.client().get(SocketAddr::new(backend.v4(), 80)).is_err(),
        "answered without a cable"
    );
    backend.return_to_network()?;
    for address in [backend.v4(), backend.v6()] {
        wait_until("the backend to be reachable again", SETTLE * 3, || {
            Ok(lab.client().get(SocketAddr::new(address, 80)).is_ok())
        })?;
    }
    Ok(())
}

fn nothing_left() -> Result<()> {
    let left = |lab: &Lab| {
        let name = lab.router().name().to_owned();
        let traces = [
            Path::new(netns::DIRECTORY).join(name),
            lab.temporary_directory(),
            lab.pin_directory(),
        ];
        move || traces.iter().any(|trace| trace.exists())
    };
    let lab = Lab::builder().backends(1).build()?;
    let exists = left(&lab);
    ensure!(exists(), "the laboratory has no trace while it lives");
    drop(lab);
    ensure!(!exists(), "something is left after drop");

    let mut exists: Option<Box<dyn Fn() -> bool>> = None;
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let lab = Lab::builder().backends(1).build().unwrap();
        exists = Some(Box::new(left(&lab)));
        // Quiet: the panic hook is not run.
        std::panic::resume_unwind(Box::new("as intended"));
    }));
    ensure!(panicked.is_err());
    ensure!(
        exists.is_some_and(|exists| !exists()),
        "something is left after a panic"
    );
    Ok(())
}

fn sweep() -> Result<()> {
    // The name of a process that has certainly ended: a child we have waited for.
    let mut child = std::process::Command::new("true").spawn()?;
    let dead = child.id();
    child.wait()?;
    let namespace = lab::Namespace::create(&format!("sluice-lab-{dead}-1-client"))?;
    let mut inside = namespace.command("sleep").arg("60").spawn()?;
    registry::sweep_stale();
    let gone = !Path::new(netns::DIRECTORY).join(namespace.name()).exists();
    let ended = wait_until(
        "the process inside to be killed",
        Duration::from_secs(2),
        || Ok(inside.try_wait()?.is_some()),
    );
    if ended.is_err() {
        inside.kill()?;
        inside.wait()?;
    }
    ensure!(gone, "the namespace of a dead process was not removed");
    ended.map(|_| ())
}
