//! A pin directory, a daemon that dies when it is dropped, and flows that must not notice.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use lb_common::track::Status;
use lb_userspace::dataplane::attach::{self, BALANCER_PREFIX};
use lb_userspace::dataplane::kernel::KernelDataPlane;
use lb_userspace::dataplane::{Adoptable, DataPlane as _, Pins, objects};
use lb_userspace::model::{Capacity, ServiceKey, TableSize, XdpMode};
use lb_userspace::plan::{DesiredService, Installed, Plan};

use crate::testrun::{Program, XDP_TX, desired, key, mark, packet};

pub const BPFFS: &str = "/sys/fs/bpf";
/// Of a pin directory; the process and a number follow.
const PREFIX: &str = "sluice-adoption-";
pub const SEED: &str = "adoption";
pub const CAPACITY: Capacity = Capacity {
    services: 16,
    backends: 32,
    slots: 4_096,
    flows: 4_096,
};

/// Removes what runs left that were killed: nothing of a process that is gone is needed.
pub fn sweep() {
    for entry in fs::read_dir(BPFFS).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if process.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A pin directory of its own, which goes with it.
pub struct Place(pub Pins, pub PathBuf);

impl Place {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(BPFFS).join(format!("{PREFIX}{}-{n}", std::process::id()));
        fs::create_dir(&path).expect("a directory in bpffs");
        Self(Pins::new(&path), path)
    }

    /// A daemon's start: what it finds, and the plane it carries on with.
    pub fn start(&self, capacity: Capacity) -> Result<Daemon, String> {
        let found = Adoptable::find(&self.0, SEED, &capacity).map_err(|e| format!("{e:#}"))?;
        let adopted = found.is_some();
        let installed = match &found {
            Some(found) => Installed::adopt(capacity, found.found()).map_err(|e| e.to_string())?,
            None => Installed::new(capacity),
        };
        let mut plane =
            KernelDataPlane::load_pinned(objects::BALANCER, SEED, &capacity, &self.0, found)
                .map_err(|e| format!("{e:#}"))?;
        let program = Program::of(&mut plane);
        Ok(Daemon {
            plane,
            installed,
            program,
            adopted,
        })
    }

    pub fn attach(&self, daemon: &mut Daemon) {
        attach::attach(
            daemon.plane.program(),
            "lo",
            XdpMode::Generic,
            &self.0.links(),
            BALANCER_PREFIX,
        )
        .expect("attached to lo");
        self.0.drop_older_sets().expect("older sets unpinned");
    }

    pub fn sets(&self) -> usize {
        let layout = self.0.links().with_file_name("");
        fs::read_dir(layout)
            .expect("the layout's directory")
            .filter(|entry| {
                let name = entry.as_ref().expect("an entry").file_name();
                name.to_string_lossy().starts_with("maps-")
            })
            .count()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.1);
    }
}

/// What dies when it is dropped; maps and program stay, pinned.
pub struct Daemon {
    pub plane: KernelDataPlane,
    pub installed: Installed,
    pub program: Program,
    pub adopted: bool,
}

impl Daemon {
    pub fn plan(&self, desired: &[DesiredService]) -> Plan {
        self.installed.plan(desired, self.adopted).expect("it fits")
    }

    pub fn go(&mut self, desired: &[DesiredService]) {
        let plan = self.plan(desired);
        for operation in &plan.operations {
            self.plane.apply(operation).expect("applied");
        }
        self.installed = plan.after;
        self.adopted = false;
    }

    pub fn send(&self, key: &ServiceKey, client: u8, flags: u8) -> Result<u8, u32> {
        send(&self.program, key, client, flags)
    }
}

pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

/// The backend that a packet goes to, or the verdict.
pub fn send(program: &Program, key: &ServiceKey, client: u8, flags: u8) -> Result<u8, u32> {
    let mut packet = packet(key, client);
    packet[14 + 20 + 13] = flags;
    let mut out = [0; 256];
    match program.run(&packet, &mut out) {
        (XDP_TX, bytes) => Ok(mark(bytes).expect("a whole header")),
        (verdict, _) => Err(verdict),
    }
}

pub fn service(n: u16, backends: &[u8]) -> DesiredService {
    desired(key(n), TableSize::Fixed(31), backends.iter().copied())
}

pub fn drained(mut service: DesiredService, n: u8) -> DesiredService {
    for backend in &mut service.backends {
        if backend.address == IpAddr::from([10, 0, 0, n]) {
            backend.eligible = false;
            backend.status = Status::Draining;
        }
    }
    service
}

/// Backends of flows that were met: (client → backend).
pub type Flows = BTreeMap<u8, u8>;

/// A flow of each of 200 clients, opened and established.
pub fn open(daemon: &Daemon, key: &ServiceKey) -> Flows {
    (0..200)
        .map(|client| {
            let backend = daemon.send(key, client, SYN).expect("forwarded");
            assert_eq!(daemon.send(key, client, ACK), Ok(backend));
            (client, backend)
        })
        .collect()
}

pub fn check(daemon: &Daemon, key: &ServiceKey, flows: &Flows, when: &str) {
    for (client, backend) in flows {
        assert_eq!(
            daemon.send(key, *client, ACK),
            Ok(*backend),
            "{when}: client {client}"
        );
    }
}

/// Drains a backend while 200 flows are open: some of its slots then remember flows.
pub fn in_change(place: &Place) -> (Daemon, Flows) {
    let mut daemon = place.start(CAPACITY).expect("a first start");
    assert!(!daemon.adopted);
    daemon.go(&[service(1, &[1, 2, 3])]);
    place.attach(&mut daemon);
    let flows = open(&daemon, &key(1));
    daemon.go(&[drained(service(1, &[1, 2, 3]), 2)]);
    check(&daemon, &key(1), &flows, "drained");
    assert!(daemon.send(&key(1), 250, SYN).is_ok());
    (daemon, flows)
}
