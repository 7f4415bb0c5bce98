//! A small world for the planner's tests: a fixed set of VIPs, backends whose routes say who they are, and packets that go
//! through the real data path after every single operation.
//!
//! Packets in flight are played too: one may have read the service table before some operations, its slot before others, and
//! read its backend only now. A grace period is what ends such packets, so reads are mixed back to the last one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::abi::{Backend, Node, Route, ServiceBucket};
use lb_common::encap::Way;
use lb_common::event::Event;
use lb_common::native::{MemoryFrame, MemoryTables};
use lb_common::process::{Forwarded, Tables, Verdict, process};
use lb_common::reason::Reason;
use lb_common::slot::SlotWord;
use lb_common::track::{FlowMemory, Head, Status, TableWord};

use crate::dataplane::memory::MemoryDataPlane;
use crate::dataplane::{DataPlane as _, Operation};
use crate::maglev::{self, Member};
use crate::model::{Affinity, Capacity, OnEmpty, Protocol, ServiceKey, TableSize};
use crate::plan::{DesiredBackend, DesiredService, Installed, InstalledService, Plan, PlanError};

/// Every service of the world has one of these keys: two families, two protocols, single ports beside "every port".
pub fn keys() -> Vec<ServiceKey> {
    let mut keys = Vec::new();
    for vip in ["203.0.113.1", "203.0.113.2", "2001:db8::1"] {
        for port in [0, 80, 443] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let vip = vip.parse().unwrap();
                keys.push(ServiceKey {
                    vip,
                    port,
                    protocol,
                });
            }
        }
    }
    keys
}

pub fn key(vip: &str) -> ServiceKey {
    ServiceKey {
        vip: vip.parse().unwrap(),
        port: 80,
        protocol: Protocol::Tcp,
    }
}

pub fn address(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

/// A route that names the service, the backend and a version in its destination MAC.
pub fn route(key: ServiceKey, backend: IpAddr, version: u8) -> Route {
    let service = keys().iter().position(|k| *k == key).unwrap() as u8;
    let IpAddr::V4(ip) = backend else {
        panic!("backends of the world are IPv4")
    };
    let way = Way {
        ifindex: 7 + u32::from(version % 2),
        mtu: 1_500,
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, service, ip.octets()[3], version, 0xee, 0],
    };
    Route::l2(&way, key.vip.is_ipv6())
}

pub fn backend(key: ServiceKey, n: u8) -> DesiredBackend {
    DesiredBackend {
        address: address(n),
        identity: address(n),
        weight: 1,
        eligible: true,
        status: Status::Active,
        lingers: false,
        only_down: false,
        may_keep: true,
        route: Some(route(key, address(n), 0)),
    }
}

pub fn service(key: ServiceKey, backends: &[u8]) -> DesiredService {
    DesiredService {
        key,
        tracking: crate::tracking::Tracking::Adaptive,
        flow_idle: FLOW_IDLE,
        affinity: Affinity::FiveTuple,
        table_size: TableSize::Fixed(31),
        on_empty: OnEmpty::Keep,
        echo: lb_common::service::Echo::default(),
        backends: backends.iter().map(|n| backend(key, *n)).collect(),
    }
}

/// 7,440 s.
pub const FLOW_IDLE: u16 = 1_734;

pub const CAPACITY: Capacity = Capacity {
    services: 8,
    backends: 40,
    slots: 4_096,
    flows: 0,
};

/// A packet and where it is for.
struct Probe {
    key: ServiceKey,
    /// The key with port 0.
    wildcard: ServiceKey,
    frame: Vec<u8>,
}

fn probes() -> Vec<Probe> {
    let mut probes = Vec::new();
    for key in keys() {
        let wildcard = ServiceKey { port: 0, ..key };
        let key = match key.port {
            0 => ServiceKey { port: 8_080, ..key },
            _ => key,
        };
        for client in 1..=3 {
            let frame = frame(&key, client);
            probes.push(Probe {
                key,
                wildcard,
                frame,
            });
        }
    }
    probes
}

fn frame(key: &ServiceKey, client: u8) -> Vec<u8> {
    let transport: Vec<u8> = {
        let mut bytes = vec![0x9c, client];
        bytes.extend(key.port.to_be_bytes());
        match key.protocol {
            // Sequence, acknowledgement, data offset 5, SYN, window, checksum, urgent.
            Protocol::Tcp => {
                bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
            }
            Protocol::Udp => bytes.extend([0, 8, 0, 0]),
        }
        bytes
    };
    let mut frame = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8];
    match key.vip {
        IpAddr::V4(vip) => {
            let total = 20 + transport.len() as u8;
            frame.extend([8, 0, 0x45, 0, 0, total, 0, 0, 0x40, 0, 64]);
            frame.extend([key.protocol.number(), 0, 0, 198, 51, 100, client]);
            frame.extend(vip.octets());
        }
        IpAddr::V6(vip) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, transport.len() as u8]);
            frame.extend([key.protocol.number(), 64]);
            let source = std::net::Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, client.into());
            frame.extend(source.octets());
            frame.extend(vip.octets());
        }
    }
    frame.extend(transport);
    frame
}

/// What a packet meets that reads each table at another moment.
struct Mixed<'a> {
    services: &'a MemoryTables,
    slots: &'a MemoryTables,
    backends: &'a MemoryTables,
}

// Slots here are at rest, so that none of this is asked for.
impl FlowMemory for Mixed<'_> {
    type Bucket<'a>
        = <MemoryTables as FlowMemory>::Bucket<'a>
    where
        Self: 'a;

    fn clock(&self) -> u64 {
        self.backends.clock()
    }
    fn flow_mask(&self) -> u32 {
        self.backends.flow_mask()
    }
    fn flow_bucket(&self, index: u32) -> Option<Self::Bucket<'_>> {
        self.backends.flow_bucket(index)
    }
    fn head(&self, backend: u32) -> Option<Head> {
        self.backends.head(backend)
    }
    fn table(&self, backend: u32) -> Option<TableWord> {
        self.backends.table(backend)
    }
    fn stamp_loss(&self, slot: u32, at: u64) {
        self.backends.stamp_loss(slot, at);
    }
    fn count_event(&self, event: Event) {
        self.backends.count_event(event);
    }
}

impl Tables for Mixed<'_> {
    fn node(&self) -> Node {
        self.services.node()
    }
    fn control(&self, index: u32) -> Option<u64> {
        self.services.control(index)
    }
    fn service_bucket(&self, index: u32) -> Option<&ServiceBucket> {
        self.services.service_bucket(index)
    }
    fn slot(&self, index: u32) -> Option<SlotWord> {
        self.slots.slot(index)
    }
    fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.backend(id)
    }
    fn count(&self, _forwarded: &Forwarded) {}
}

type Services = BTreeMap<ServiceKey, Arc<InstalledService>>;

pub struct World {
    pub plane: MemoryDataPlane,
    pub installed: Installed,
    interrupted: bool,
    probes: Vec<Probe>,
    /// What a packet may still have seen, oldest first: since the last grace period.
    history: Vec<MemoryTables>,
    /// What was wanted in that time: a packet may be treated as any of these say, and not otherwise.
    eras: Vec<Services>,
}

impl World {
    pub fn new(capacity: Capacity) -> Self {
        // As small as a table can be that holds the entries: seeds are tried, halves are reused.
        let buckets = (capacity.services * 8).next_power_of_two();
        let tables = MemoryTables::new("world", buckets, capacity.slots, capacity.backends + 1);
        Self {
            history: vec![tables.clone()],
            plane: MemoryDataPlane::new(tables),
            installed: Installed::new(capacity),
            interrupted: false,
            probes: probes(),
            eras: vec![Services::new()],
        }
    }

    /// Plans and applies, as the daemon does; `stop`: the operation that fails. Everything is checked after every operation.
    pub fn go(&mut self, desired: &[DesiredService], stop: Option<usize>) -> Result<(), PlanError> {
        let plan = self.installed.plan(desired, self.interrupted)?;
        check_order(&plan);
        check_ranges(&self.installed, &plan.after);
        let expected = expected_members(&self.installed, desired);
        self.eras.push(plan.after.services.clone());
        for (i, operation) in plan.operations.iter().enumerate() {
            if stop == Some(i) {
                self.installed.interrupted(&plan.after);
                self.interrupted = true;
                return Ok(());
            }
            if let Operation::WriteSlots { slots } = operation {
                // Slots are stored one by one, so packets see every prefix.
                let (first, rest) = slots.split_at(slots.len() / 2);
                for part in [first, rest] {
                    let slots = part.to_vec();
                    self.step(&Operation::WriteSlots { slots });
                }
            } else {
                self.step(operation);
            }
            if *operation == Operation::Grace {
                self.eras = vec![plan.after.services.clone()];
                self.history.clear();
            }
            self.check_packets(&format!("after operation {i} of {:?}", plan.operations));
            self.history.push(self.plane.tables.clone());
        }
        self.installed = plan.after;
        self.interrupted = false;
        self.check_settled(desired, &expected);
        Ok(())
    }

    /// The daemon dies, and another one takes over what the maps say.
    pub fn restart(&mut self) {
        let found = self.plane.adopt();
        let left = Installed::adopt(self.installed.capacity, &found).expect("it fitted before");
        // A new daemon begins with a grace period.
        self.step(&Operation::Grace);
        self.history = vec![self.plane.tables.clone()];
        // No id in use is thought free, none that is free in use.
        let used = self.plane.tables.backends.iter();
        let used = used.filter(|record| Head(record.head).service() != 0);
        assert_eq!(left.backends_used(), used.count() as u64);
        self.installed = left;
        self.interrupted = true;
    }

    fn step(&mut self, operation: &Operation) {
        self.plane.apply(operation).expect("applied");
        self.check_packets(&format!("during {operation:?}"));
    }

    fn check_packets(&self, when: &str) {
        let now = &self.plane.tables;
        let middle = self.history.get(self.history.len() / 2).unwrap_or(now);
        let newest = self.history.last().unwrap_or(now);
        let mut reads = vec![(now, now), (newest, newest)];
        // Each service table that was in force in this time.
        for (i, past) in self.history.iter().enumerate() {
            if i == 0 || past.control != self.history[i - 1].control {
                reads.push((past, now));
                if i <= self.history.len() / 2 {
                    reads.push((past, middle));
                }
            }
        }
        for (services, slots) in reads {
            let tables = Mixed {
                services,
                slots,
                backends: now,
            };
            for probe in &self.probes {
                check(probe, &tables, &self.eras, when);
            }
        }
    }

    /// With every operation of the plan applied: exactly what is desired, nothing of before.
    fn check_settled(
        &self,
        desired: &[DesiredService],
        expected: &BTreeMap<ServiceKey, Vec<Member>>,
    ) {
        let again = self.installed.plan(desired, false).expect("plans again");
        assert_eq!(again.operations, [], "planned twice");
        assert_eq!(again.tables_changed, 0);
        let tables = &self.plane.tables;
        for probe in &self.probes {
            check(
                probe,
                tables,
                std::slice::from_ref(&self.installed.services),
                "settled",
            );
        }
        assert_eq!(self.installed.services.len(), desired.len());
        let mut ids = BTreeSet::new();
        for service in desired {
            let key = &service.key;
            let installed = &self.installed.services[key];
            let members = &expected[key];
            assert_eq!(installed.members, *members, "{key}");
            let table = maglev::build(members, installed.size);
            for i in 0..installed.size {
                let id = tables.slots[(installed.first_slot + i) as usize].primary();
                assert_eq!(
                    id,
                    installed.backend_of_slot(i),
                    "{key}: the mirror is wrong"
                );
                let want = table.get(i as usize).map(|m| {
                    let place = members[*m as usize].identity;
                    let holds = |b: &&DesiredBackend| b.identity == place && !b.lingers;
                    let holder = service.backends.iter().find(holds);
                    holder.expect("a member is wanted").address
                });
                let have = installed.backends.iter().find(|(_, b)| b.id == id);
                assert_eq!(have.map(|(address, _)| *address), want, "{key} slot {i}");
            }
            assert_eq!(installed.backends.len(), service.backends.len(), "{key}");
            for want in &service.backends {
                let have = installed.backends[&want.address];
                assert!(ids.insert(have.id), "id {} is given twice", have.id);
                let record = &tables.backends[have.id as usize];
                assert_eq!((record.head >> 32) as u32, installed.number);
                if let Some(route) = want.route {
                    assert_eq!(record.routes[(record.head & 1) as usize], route);
                }
            }
        }
        assert_eq!(self.installed.backends_used(), ids.len() as u64);
        for (id, record) in tables.backends.iter().enumerate() {
            if !ids.contains(&(id as u32)) {
                assert_eq!(Head(record.head).status(), Status::Gone);
                let route = record.routes[(record.head & 1) as usize];
                assert_eq!((record.head >> 32, route), (0, Route::NONE), "id {id}");
            }
        }
    }

    /// What happens to a packet of the world's first client now: the backend's number, or the reason.
    pub fn send(&self, key: ServiceKey) -> Result<u8, Reason> {
        let mut frame = MemoryFrame::new(&frame(&key, 1), 1);
        match process(&mut frame, &self.plane.tables) {
            Verdict::Forward(_) => Ok(frame.bytes()[2]),
            Verdict::Refuse(reason) => Err(reason),
        }
    }

    /// The backends that slots of a service name now.
    pub fn shares(&self, key: ServiceKey) -> BTreeMap<u8, usize> {
        let mut shares = BTreeMap::new();
        let service = &self.installed.services[&key];
        for i in 0..service.size {
            let id = self.plane.tables.slots[(service.first_slot + i) as usize].primary();
            let record = &self.plane.tables.backends[id as usize];
            if id != 0 {
                let route = record.routes[(record.head & 1) as usize];
                *shares.entry(route.header[2]).or_default() += 1;
            }
        }
        shares
    }
}

/// A packet goes to a member of its own service, or nowhere; each as some era says.
fn check<T: Tables>(probe: &Probe, tables: &T, eras: &[Services], when: &str) {
    let mut frame = MemoryFrame::new(&probe.frame, 1);
    let verdict = process(&mut frame, tables);
    let candidates: Vec<Option<ServiceKey>> = eras
        .iter()
        .map(|era| {
            [probe.key, probe.wildcard]
                .into_iter()
                .find(|k| era.contains_key(k))
        })
        .collect();
    let of = |key: &ServiceKey| -> Vec<&Arc<InstalledService>> {
        eras.iter().filter_map(|era| era.get(key)).collect()
    };
    match verdict {
        Verdict::Forward(Forwarded { ifindex, .. }) => {
            let bytes = frame.bytes();
            let (service, backend) = (keys()[bytes[1] as usize], address(bytes[2]));
            assert!(
                candidates.contains(&Some(service)),
                "{}: reached {backend} of {service} {when}",
                probe.key
            );
            assert!(
                // Not only members: a flow that is remembered stays with a backend that has left the table.
                of(&service)
                    .iter()
                    .any(|s| s.backends.contains_key(&backend)),
                "{}: reached {backend}, no backend of {service}, {when}",
                probe.key
            );
            assert_eq!(ifindex, 7 + u32::from(bytes[3] % 2));
        }
        Verdict::Refuse(Reason::NotOurs) => {
            assert!(candidates.contains(&None), "{}: not ours {when}", probe.key)
        }
        Verdict::Refuse(Reason::NoBackend) => assert!(
            candidates
                .iter()
                .flatten()
                .any(|key| of(key).iter().any(|s| s.members.is_empty())),
            "{}: no backend {when}",
            probe.key
        ),
        Verdict::Refuse(reason) => panic!("{}: {} {when}", probe.key, reason.name()),
    }
}

/// Who should share each table: the eligible, else (`on_empty = "keep"`) who shared it last and may stay.
fn expected_members(
    before: &Installed,
    desired: &[DesiredService],
) -> BTreeMap<ServiceKey, Vec<Member>> {
    let mut expected = BTreeMap::new();
    for service in desired {
        let mut members = Vec::new();
        for backend in service.backends.iter().filter(|b| b.eligible) {
            members.push(Member {
                identity: backend.identity,
                weight: backend.weight,
            });
        }
        if members.is_empty() && service.on_empty == OnEmpty::Keep {
            for backend in service.backends.iter().filter(|b| b.only_down) {
                members.push(Member {
                    identity: backend.identity,
                    weight: backend.weight,
                });
            }
        }
        if members.is_empty()
            && service.on_empty == OnEmpty::Keep
            && let Some(last) = before.services.get(&service.key)
        {
            members.clone_from(&last.members);
            members.retain(|m| {
                let mut backends = service.backends.iter();
                backends.any(|b| b.identity == m.identity && b.may_keep)
            });
        }
        members.sort_by_key(|m| m.identity);
        expected.insert(service.key, members);
    }
    expected
}

/// Egress, then backends, then slots, then the service table, then a grace period, then clearing.
fn check_order(plan: &Plan) {
    let rank = |operation: &Operation| match operation {
        Operation::AllowEgress { .. } => 0,
        Operation::Describe { .. }
        | Operation::WriteBackend { .. }
        | Operation::SetStatus { .. } => 1,
        Operation::WriteSlots { .. } => 2,
        Operation::ChangeSlots { .. } => 3,
        Operation::SetServices { .. } => 4,
        Operation::Grace | Operation::Purge { .. } => 5,
        Operation::ClearBackend { .. } => 6,
    };
    let ranks: Vec<_> = plan.operations.iter().map(rank).collect();
    assert!(ranks.is_sorted(), "{:?}", plan.operations);
    for once in [2, 4] {
        assert!(ranks.iter().filter(|r| **r == once).count() <= 1);
    }
    let end: Vec<_> = plan
        .operations
        .iter()
        .filter(|o| matches!(o, Operation::Grace | Operation::Purge { .. }))
        .map(|o| matches!(o, Operation::Purge { .. }))
        .collect();
    // What is cleared is purged before, between two grace periods.
    let expected: &[&[bool]] = match ranks.contains(&6) {
        true => &[&[false, true, false]],
        false => &[&[], &[false]],
    };
    assert!(expected.contains(&end.as_slice()), "{:?}", plan.operations);
    let ids = |wanted: u8| -> Vec<u32> {
        plan.operations
            .iter()
            .filter_map(|operation| match operation {
                Operation::WriteBackend { id, .. } if wanted == 1 => Some(*id),
                Operation::ClearBackend { id } if wanted == 6 => Some(*id),
                _ => None,
            })
            .collect()
    };
    let (written, cleared) = (ids(1), ids(6));
    for ids in [&written, &cleared] {
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    }
    for id in &cleared {
        assert!(!written.contains(id), "id {id} is reused in its own plan");
        for service in plan.after.services.values() {
            assert!(service.backends.values().all(|b| b.id != *id));
        }
    }
}

/// No two ranges overlap, and a range that is new lies in nobody's old one; so with numbers.
fn check_ranges(before: &Installed, after: &Installed) {
    let range = |s: &InstalledService| s.first_slot..s.first_slot + s.size;
    for (key, service) in &after.services {
        let (mine, number) = (range(service), service.number);
        assert!(mine.end <= after.capacity.slots);
        let others = after.services.iter().chain(&before.services);
        for (other, service) in others.filter(|(other, _)| *other != key) {
            let theirs = range(service);
            let apart = mine.end <= theirs.start || theirs.end <= mine.start;
            assert!(apart, "{key} {mine:?} overlaps {other} {theirs:?}");
            assert_ne!(number, service.number, "{key} and {other}");
        }
    }
}
