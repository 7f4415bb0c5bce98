//! How long the chores take on tables of real sizes: `cargo bench -p lb-userspace --bench chores`, as root (two minutes).

use std::time::Duration;

use lb_common::abi::Route;
use lb_common::flow::{Age, FlowEntry, FlowState, WAYS};
use lb_common::track::{Status, TableWord};
use nix::time::{ClockId, clock_gettime};

use lb_userspace::dataplane::chores::Maintenance;
use lb_userspace::dataplane::kernel::KernelDataPlane;
use lb_userspace::dataplane::{DataPlane as _, Operation, objects};
use lb_userspace::model::{Capacity, Tracking};
use lb_userspace::tracking::round::Round;
use lb_userspace::tracking::settle::Scope;
use lb_userspace::tracking::{SECOND, Step};

const BACKENDS: u32 = 200;
const TABLE: u32 = 65_537;
/// As the owner takes them.
const STRETCH: u32 = 4_096;

/// A plane with one service for each whole table that fits, all of whose slots stopped learning.
fn plane(flows: u32) -> (KernelDataPlane, Vec<Scope>) {
    let capacity = Capacity {
        flows,
        ..Capacity::default()
    };
    let mut plane = KernelDataPlane::load(objects::BALANCER, "test", &capacity)
        .expect("the program loads (as root)");
    let services = capacity.slots / TABLE;
    let scopes: Vec<_> = (0..services)
        .map(|service| Scope {
            slots: service * TABLE..(service + 1) * TABLE,
            tracking: Tracking::Adaptive,
            window: 3_600 * SECOND,
        })
        .collect();
    for id in 1..=BACKENDS {
        let service = id % services;
        let write = Operation::WriteBackend {
            id,
            service: service + 1,
            status: Status::Active,
            route: Route::NONE,
            table: TableWord::new(service * TABLE, TABLE, Age::units(7_440)),
        };
        plane.apply(&write).expect("written");
    }
    (plane, scopes)
}

/// Every slot learns, and its incumbent is the first backend of its service.
fn all_learn(plane: &mut KernelDataPlane, scopes: &[Scope]) {
    for (service, scope) in (1..).zip(scopes) {
        // Its backends are those whose id modulo the number of services is its own number less one; ids begin at 1.
        let services = scopes.len() as u32;
        let own = match service {
            1 => services,
            _ => service - 1,
        };
        for backend in [own, own + services] {
            let change = Operation::ChangeSlots {
                service,
                first: scope.slots.start,
                primaries: vec![backend; TABLE as usize],
                tracking: Tracking::Adaptive,
                came_back: Vec::new(),
            };
            plane.apply(&change).expect("changed");
        }
    }
}

/// Stores flows in this share of the entries, as many in each bucket.
fn fill(plane: &KernelDataPlane, state: FlowState, ways: usize) {
    let age = Age::of(plane.clock());
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for bucket in 0..plane.flow_entries() as u32 / WAYS as u32 {
        for way in 0..WAYS {
            random = random.wrapping_mul(0xd129_0b26_88dd_c8f5).wrapping_add(1);
            let (tag, backend) = ((random >> 36) as u32, (random >> 20) as u32 % BACKENDS + 1);
            let entry = match way < ways {
                true => FlowEntry::new(tag, backend, state, age),
                false => FlowEntry::EMPTY,
            };
            plane.store_flow_entry(bucket * WAYS as u32 + way as u32, entry);
        }
    }
}

/// This thread's processor time: others may want the processor, too.
fn worked() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .expect("every Linux has this clock")
        .into()
}

#[derive(Default)]
struct Measured {
    whole: Duration,
    steps: u32,
    longest: Duration,
    graces: u32,
}

fn measure(plane: &mut KernelDataPlane, scopes: &[Scope]) -> Measured {
    let mut work = Maintenance::new(Round::new(scopes.to_vec()));
    let mut measured = Measured::default();
    loop {
        let began = worked();
        let step = work.step(plane, STRETCH).expect("a step");
        let took = worked() - began;
        measured.whole += took;
        measured.steps += 1;
        measured.longest = measured.longest.max(took);
        measured.graces += u32::from(step == Step::Grace);
        if step == Step::Done {
            return measured;
        }
    }
}

fn main() {
    for bits in [20, 23] {
        let (mut plane, scopes) = plane(1 << bits);
        for (ways, what) in [(0, "empty"), (2, "a quarter full"), (8, "full")] {
            all_learn(&mut plane, &scopes);
            fill(&plane, FlowState::Established, ways);
            let took = measure(&mut plane, &scopes);
            let began = worked();
            let modes: u64 = scopes
                .iter()
                .map(|s| plane.modes(s.slots.start, TABLE)[1])
                .sum();
            println!(
                "2^{bits} entries, {what}, {modes} slots learn: {:?} without {} grace periods, {} steps, the longest {:?}; \
                 all modes counted in {:?}",
                took.whole,
                took.graces,
                took.steps,
                took.longest,
                worked() - began,
            );
        }
        // Everything is due, and every entry has to be converted.
        all_learn(&mut plane, &scopes);
        fill(&plane, FlowState::Learnt, 8);
        let due: Vec<_> = scopes
            .iter()
            .map(|s| Scope {
                window: 0,
                ..s.clone()
            })
            .collect();
        std::thread::sleep(Duration::from_secs(9));
        let took = measure(&mut plane, &due);
        println!(
            "2^{bits} entries, all learnt, all due: {:?} without {} grace periods, {} steps, the longest {:?}",
            took.whole, took.graces, took.steps, took.longest
        );
    }
}
