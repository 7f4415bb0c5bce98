//! The compiled objects against the ABI that user space was compiled with: names, sizes, types, licence; and what they cost the
//! verifier.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapInfo;
use aya::programs::Xdp;
use aya_obj::Object;
use lb_common::abi::{Backend, BackendCounters, FlowLine, Identity, ServiceBucket, control, names};
use lb_common::event::EVENTS;
use lb_common::reason::REASONS;
use lb_common::slot::SlotWord;
use lb_userspace::dataplane::{decap, objects};
use libtest_mimic::Trial;

use crate::run::Kernel;
use crate::world::CAPACITY;
use crate::{kernel, native};

// enum bpf_map_type and flags of linux/bpf.h.
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PER_CPU_ARRAY: u32 = 6;
const DEVMAP_HASH: u32 = 25;
const RING_BUFFER: u32 = 27;
const MMAPABLE: u32 = 1 << 10;

/// Far from the million that the kernel allows, near enough to notice when a change makes the verifier's work explode.
const INSTRUCTION_LIMIT: u32 = 100_000;

pub fn trials() -> Vec<Trial> {
    vec![
        native("the balancer's object has the maps of the ABI", || {
            maps_of(objects::BALANCER, &balancer_maps())
        }),
        native("the decapsulator's object has the maps of the ABI", || {
            maps_of(objects::DECAP, &decap_maps())
        }),
        native(
            "both objects declare their licence and their program",
            licences,
        ),
        kernel(
            "the loaded balancer's maps have the sizes asked for",
            loaded_maps,
        ),
        kernel("the verifier's cost of the balancer", || {
            let count = Kernel::get()?.plane().verified_instructions()?;
            report(names::BALANCER, count)
        }),
        kernel("the verifier's cost of the decapsulator", || {
            let mut ebpf = decap::load()?;
            let program: &mut Xdp = ebpf
                .program_mut(names::DECAP)
                .context("no program")?
                .try_into()?;
            program.load()?;
            let info = program.info()?;
            ensure!(
                info.gpl_compatible() == Some(true),
                "not loaded under a GPL-compatible licence"
            );
            report(
                names::DECAP,
                info.verified_instruction_count()
                    .context("the kernel does not say")?,
            )
        }),
    ]
}

fn report(program: &str, count: u32) -> Result<()> {
    println!("verifier: {program} {count} instructions");
    ensure!(
        count < INSTRUCTION_LIMIT,
        "the verifier processes {count} instructions of {program}"
    );
    Ok(())
}

/// Type, key size, value size, flags.
type Shape = (u32, u32, u32, u32);

fn array<T>() -> Shape {
    (ARRAY, 4, size_of::<T>() as u32, MMAPABLE)
}

fn balancer_maps() -> BTreeMap<&'static str, Shape> {
    BTreeMap::from([
        (names::SERVICES, array::<ServiceBucket>()),
        (names::SLOTS, array::<SlotWord>()),
        (names::FLOWS, array::<FlowLine>()),
        (names::LOSSES, array::<u64>()),
        (names::BACKENDS, array::<Backend>()),
        (names::IDENTITIES, array::<Identity>()),
        (names::CONTROL, array::<u64>()),
        (names::BACKEND_COUNTERS, array::<BackendCounters>()),
        (names::REASON_COUNTERS, array::<u64>()),
        (names::EVENT_COUNTERS, array::<u64>()),
        // struct bpf_devmap_val: interface, program.
        (names::EGRESS, (DEVMAP_HASH, 4, 8, 0)),
        // aya-log's.
        ("AYA_LOGS", (RING_BUFFER, 0, 0, 0)),
    ])
}

fn decap_maps() -> BTreeMap<&'static str, Shape> {
    BTreeMap::from([
        (names::DECAP_ALLOWED, (HASH, 24, 8, 0)),
        (names::DECAP_SOURCES, (HASH, 24, 8, 0)),
        (names::DECAP_COUNTERS, (PER_CPU_ARRAY, 4, 8, 0)),
    ])
}

fn maps_of(object: &[u8], expected: &BTreeMap<&str, Shape>) -> Result<()> {
    let object = Object::parse(object)?;
    // Sections of data (.rodata) are maps, too, but nobody looks them up by name.
    let found: BTreeMap<&str, Shape> = object
        .maps
        .iter()
        .filter(|(name, _)| !name.starts_with('.'))
        .map(|(name, map)| {
            (
                name.as_str(),
                (
                    map.map_type(),
                    map.key_size(),
                    map.value_size(),
                    map.map_flags(),
                ),
            )
        })
        .collect();
    ensure!(
        found == *expected,
        "the ABI says\n{expected:?}\nthe object has\n{found:?}"
    );
    Ok(())
}

fn licences() -> Result<()> {
    for (bytes, program) in [
        (objects::BALANCER, names::BALANCER),
        (objects::DECAP, names::DECAP),
    ] {
        let object = Object::parse(bytes)?;
        ensure!(
            object.license.to_str()? == "Dual MIT/GPL",
            "{program}: licence {:?}",
            object.license
        );
        let programs: Vec<_> = object.programs.keys().collect();
        ensure!(
            programs == [program],
            "programs {programs:?}, expected {program} alone"
        );
    }
    Ok(())
}

fn loaded_maps() -> Result<()> {
    let mut kernel = Kernel::get()?;
    let info = kernel.plane().program().info()?;
    ensure!(
        info.gpl_compatible() == Some(true),
        "not loaded under a GPL-compatible licence"
    );
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)? as u32;
    let backends = CAPACITY.backends + 1;
    let sizes = BTreeMap::from([
        (names::SLOTS, CAPACITY.slots),
        (names::BACKENDS, backends),
        (names::CONTROL, control::WORDS),
        (names::BACKEND_COUNTERS, cpus * backends),
        (names::REASON_COUNTERS, cpus * REASONS),
        (names::EVENT_COUNTERS, cpus * EVENTS),
    ]);
    let mut shapes = balancer_maps();
    // Only daemons read it.
    shapes.remove(names::IDENTITIES);
    let mut found = 0;
    for id in info
        .map_ids()?
        .context("the kernel does not say which maps")?
    {
        let map = MapInfo::from_id(id)?;
        let name = map.name_as_str().context("a map without a name")?;
        // The kernel keeps fifteen bytes of a name.
        let Some((full, shape)) = shapes.iter().find(|(full, _)| full.starts_with(name)) else {
            continue;
        };
        found += 1;
        let kind = map.map_type()? as u32;
        // The kernel adds flags of its own to a device map.
        let flags = map.map_flags() & MMAPABLE;
        let loaded = (kind, map.key_size(), map.value_size(), flags);
        ensure!(loaded == *shape, "{full}: {loaded:?}, expected {shape:?}");
        if let Some(size) = sizes.get(full) {
            ensure!(
                map.max_entries() == *size,
                "{full}: {} entries, expected {size}",
                map.max_entries()
            );
        }
    }
    ensure!(
        found == shapes.len(),
        "the program uses {found} of {} maps",
        shapes.len()
    );
    Ok(())
}
