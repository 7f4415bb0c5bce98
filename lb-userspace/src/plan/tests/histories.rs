//! Random histories: whatever is wanted, in whatever order, and wherever a plan breaks off, no packet goes astray.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;

use super::world::{CAPACITY, FLOW_IDLE, World, address, keys, route};
use crate::model::{Affinity, Capacity, OnEmpty, ServiceKey, TableSize};
use crate::plan::{DesiredBackend, DesiredService, Installed, PlanError};

type Wanted = BTreeMap<ServiceKey, DesiredService>;

/// One thing that operators, probes or netlink do.
#[derive(Clone, Debug)]
enum Edit {
    Put(usize, Settings, Vec<(u8, Backend)>),
    Settings(usize, Settings),
    Remove(usize),
    /// The same backends at another key, in one plan.
    Rekey(usize, usize),
    Backend(usize, u8, Option<Backend>),
    /// All probes of a service fail.
    Fail(usize),
}

#[derive(Clone, Copy, Debug)]
struct Settings {
    size: TableSize,
    on_empty: OnEmpty,
    affinity: Affinity,
}

#[derive(Clone, Copy, Debug)]
struct Backend {
    weight: u32,
    healthy: bool,
    /// When not healthy: probed and down, rather than not probed or drained.
    down: bool,
    may_keep: bool,
    route: Option<u8>,
}

fn settings() -> impl Strategy<Value = Settings> {
    let size = prop_oneof![
        8 => prop::sample::select(vec![7, 13, 31]).prop_map(TableSize::Fixed),
        1 => Just(TableSize::Auto),
    ];
    let on_empty = prop_oneof![Just(OnEmpty::Keep), Just(OnEmpty::Drop)];
    let affinity = prop_oneof![Just(Affinity::FiveTuple), Just(Affinity::ClientIp)];
    (size, on_empty, affinity).prop_map(|(size, on_empty, affinity)| Settings {
        size,
        on_empty,
        affinity,
    })
}

fn one_backend() -> impl Strategy<Value = Backend> {
    let mostly = prop::bool::weighted(0.8);
    let route = prop::option::weighted(0.85, 0..4_u8);
    let backend = (0..4_u32, mostly, prop::bool::ANY, mostly, route);
    backend.prop_map(|(weight, healthy, down, may_keep, route)| Backend {
        weight,
        healthy,
        down,
        may_keep,
        route,
    })
}

fn edit() -> impl Strategy<Value = Edit> {
    let key = || 0..keys().len();
    let backends = prop::collection::vec((1..=5_u8, one_backend()), 0..4);
    prop_oneof![
        4 => (key(), settings(), backends).prop_map(|(k, s, b)| Edit::Put(k, s, b)),
        1 => (key(), settings()).prop_map(|(k, s)| Edit::Settings(k, s)),
        1 => key().prop_map(Edit::Remove),
        1 => (key(), key()).prop_map(|(from, to)| Edit::Rekey(from, to)),
        4 => (key(), 1..=5_u8, prop::option::weighted(0.8, one_backend()))
            .prop_map(|(k, n, b)| Edit::Backend(k, n, b)),
        2 => key().prop_map(Edit::Fail),
    ]
}

/// Edits meet what exists: `n` counts through the services that are there.
fn existing(wanted: &Wanted, n: usize) -> Option<ServiceKey> {
    wanted.keys().nth(n % wanted.len().max(1)).copied()
}

fn make(key: ServiceKey, n: u8, backend: Backend) -> DesiredBackend {
    DesiredBackend {
        address: address(n),
        identity: address(n),
        weight: backend.weight,
        // As `state` says: weight and a known way are needed.
        eligible: backend.healthy && backend.weight > 0 && backend.route.is_some(),
        status: lb_common::track::Status::Active,
        lingers: false,
        only_down: backend.down
            && !backend.healthy
            && backend.weight > 0
            && backend.route.is_some(),
        may_keep: backend.may_keep,
        route: backend.route.map(|version| route(key, address(n), version)),
    }
}

fn edit_into(wanted: &mut Wanted, edit: &Edit) {
    match edit {
        Edit::Put(k, settings, backends) => {
            let key = keys()[*k];
            let unique: BTreeMap<_, _> = backends.iter().copied().collect();
            let service = DesiredService {
                key,
                affinity: settings.affinity,
                tracking: crate::tracking::Tracking::Adaptive,
                flow_idle: FLOW_IDLE,
                table_size: settings.size,
                on_empty: settings.on_empty,
                echo: lb_common::service::Echo::default(),
                backends: unique.iter().map(|(n, b)| make(key, *n, *b)).collect(),
            };
            wanted.insert(key, service);
        }
        Edit::Settings(n, settings) => {
            if let Some(service) = existing(wanted, *n).and_then(|k| wanted.get_mut(&k)) {
                service.affinity = settings.affinity;
                service.table_size = settings.size;
                service.on_empty = settings.on_empty;
            }
        }
        Edit::Remove(n) => {
            if let Some(key) = existing(wanted, *n) {
                wanted.remove(&key);
            }
        }
        Edit::Rekey(n, to) => {
            if let Some(mut service) = existing(wanted, *n).and_then(|k| wanted.remove(&k)) {
                service.key = keys()[*to];
                for (n, backend) in service.backends.iter_mut().enumerate() {
                    let version = n as u8 % 4;
                    backend.route = backend
                        .route
                        .map(|_| route(service.key, backend.address, version));
                }
                wanted.insert(service.key, service);
            }
        }
        Edit::Backend(k, n, backend) => {
            if let Some(service) = existing(wanted, *k).and_then(|k| wanted.get_mut(&k)) {
                service.backends.retain(|b| b.address != address(*n));
                let key = service.key;
                // The planner does not ask for an order of backends.
                service.backends.extend(backend.map(|b| make(key, *n, b)));
            }
        }
        Edit::Fail(n) => {
            if let Some(service) = existing(wanted, *n).and_then(|k| wanted.get_mut(&k)) {
                for backend in &mut service.backends {
                    backend.eligible = false;
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Step {
    edits: Vec<Edit>,
    /// Where the plan breaks off.
    stop: Option<Index>,
    /// What is wanted goes back to what it was, as after a refused command.
    revert: bool,
    /// The daemon dies there.
    dies: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (
        prop::collection::vec(edit(), 1..6),
        prop::option::of(any::<Index>()),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(edits, stop, revert, dies)| Step {
            edits,
            stop,
            revert,
            dies,
        });
    prop::collection::vec(step, 1..10)
}

/// What goes wrong with plans.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// They break off.
    Interrupted,
    /// They break off, or not, and the daemon dies.
    Death,
}

fn play(steps: &[Step], trouble: Trouble) {
    let mut world = World::new(CAPACITY);
    let mut wanted = Wanted::new();
    let list = |wanted: &Wanted| wanted.values().cloned().collect::<Vec<_>>();
    for step in steps {
        let before = wanted.clone();
        for edit in &step.edits {
            edit_into(&mut wanted, edit);
        }
        let desired = list(&wanted);
        let stop = step
            .stop
            .filter(|_| trouble != Trouble::None)
            .and_then(|stop| {
                let plan = world.installed.plan(&desired, false).ok()?;
                (!plan.operations.is_empty()).then(|| stop.index(plan.operations.len()))
            });
        match world.go(&desired, stop) {
            Ok(()) if stop.is_some() && step.revert => wanted = before,
            Ok(()) => {}
            Err(PlanError::Capacity { .. }) => wanted = before,
        }
        if trouble == Trouble::Death && step.dies {
            world.restart();
        }
    }
    // At last everything works: what is wanted holds, however the way was.
    let desired = list(&wanted);
    world.go(&desired, None).expect("it fitted before");

    // A node without this history comes to the same tables.
    // (With more room: tables of size "auto" that were small when they were made are larger there.)
    let room = Capacity {
        slots: 8 * 1_021,
        ..CAPACITY
    };
    let fresh = Installed::new(room)
        .plan(&desired, false)
        .expect("fits an empty node");
    for service in desired
        .iter()
        .filter(|s| s.backends.iter().any(|b| b.eligible))
    {
        let (old, new) = (
            &world.installed.services[&service.key],
            &fresh.after.services[&service.key],
        );
        if old.size == new.size {
            assert_eq!(old.digest(), new.digest(), "{}", service.key);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn no_packet_goes_astray(steps in steps()) {
        play(&steps, Trouble::None);
    }

    #[test]
    fn nor_when_plans_break_off(steps in steps()) {
        play(&steps, Trouble::Interrupted);
    }

    #[test]
    fn nor_when_daemons_die(steps in steps()) {
        play(&steps, Trouble::Death);
    }
}
