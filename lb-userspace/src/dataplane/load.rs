//! How the kernel's data plane begins: with maps of its own, or with those of an earlier daemon.
//!
//! A set of maps that fits is carried on with as it is. One of another size (capacity was changed, or a newer version has more
//! counters) is copied into a new one; the older program goes on with its own until it is replaced, and both share the flow
//! table. Either way nothing is remembered less.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use aya::EbpfLoader;
use aya::maps::Map;
use aya::maps::xdp::DevMapHash;
use lb_common::abi::{Node, control, names};
use lb_common::hash;

use super::kernel::KernelDataPlane;
use super::pins::Pins;
use super::tables::{Set, Sizes, Tables};
use crate::model::Capacity;
use crate::tracking::Book;

/// What is pinned, looked at and found good; not yet touched.
pub struct Adoptable {
    set: Set,
}

impl Adoptable {
    /// The data path in force, if there is one.
    ///
    /// # Errors
    /// When it cannot be carried on with, with the way out. Nothing has been changed.
    pub fn find(pins: &Pins, hash_seed: &str, capacity: &Capacity) -> Result<Option<Self>> {
        pins.refuse_others()?;
        if !pins.carries_traffic() {
            return Ok(None);
        }
        let Some((_, directory)) = pins.current()? else {
            tracing::warn!(
                "{} has links but no maps: the data path is made anew, and connections in change may be reset",
                pins.links().display()
            );
            return Ok(None);
        };
        let sizes = Sizes::of(capacity)?;
        let set = Set::open(&directory, &sizes)?;
        if set.found.entries.is_empty() {
            // Perhaps of a daemon that died before its first plan was through and its program attached: then the one that is
            // attached has other maps, and must not be replaced before these are filled. No connection goes through them in any case.
            return Ok(None);
        }
        set.require_seed(hash::fingerprint(&hash::keys_from_seed(hash_seed)))?;
        set.require_flow_table(&sizes)?;
        Ok(Some(Self { set }))
    }

    /// What its maps say.
    pub const fn found(&self) -> &super::Found {
        &self.set.found
    }
}

impl KernelDataPlane {
    /// Loads the object with maps of this capacity, which end with this process. Nothing is attached yet.
    pub fn load(object: &[u8], hash_seed: &str, capacity: &Capacity) -> Result<Self> {
        Self::with_maps(object, hash_seed, capacity, |_| None, None)
    }

    /// Loads the object with pinned maps: those found, or new ones. Nothing is attached yet.
    ///
    /// # Errors
    /// Whatever the kernel says. An older program goes on as it was.
    pub fn load_pinned(
        object: &[u8],
        hash_seed: &str,
        capacity: &Capacity,
        pins: &Pins,
        adoptable: Option<Adoptable>,
    ) -> Result<Self> {
        let set = adoptable.map(|adoptable| adoptable.set);
        if let Some(set) = set.as_ref().filter(|set| set.fits()) {
            let mut plane =
                Self::with_maps(object, hash_seed, capacity, |name| set.pin(name), None)?;
            plane.adopt_book();
            return Ok(plane);
        }
        let unfinished = pins.begin_set()?;
        let shared = |name: &str| set.as_ref().and_then(|set| set.pin(name));
        let mut plane = Self::with_maps(object, hash_seed, capacity, shared, Some(&unfinished))?;
        if let Some(set) = &set {
            plane.tables.copy_from(&set.tables, plane.cpus);
            plane.set_services(&set.found.entries)?;
            for ifindex in &set.egress {
                plane.allow_egress(*ifindex)?;
            }
            plane.adopt_book();
        }
        pins.publish_set()?;
        Ok(plane)
    }

    /// `shared`: the pin of a map that is there already. `publish`: where to pin all of them.
    fn with_maps(
        object: &[u8],
        hash_seed: &str,
        capacity: &Capacity,
        shared: impl Fn(&'static str) -> Option<PathBuf>,
        publish: Option<&Path>,
    ) -> Result<Self> {
        let sizes = Sizes::of(capacity)?;
        let node = Node {
            hash_keys: hash::keys_from_seed(hash_seed),
            service_mask: sizes.service_buckets - 1,
            backend_capacity: sizes.backends,
            flow_mask: sizes.flow_buckets - 1,
            _pad: 0,
        };
        let words = node.words();
        let mut loader = EbpfLoader::new();
        loader.override_global(names::NODE, &words, true);
        for (name, entries) in sizes.entries() {
            loader.map_max_entries(name, entries);
            if let Some(pin) = shared(name) {
                loader.map_pin_path(name, pin);
            }
        }
        let mut ebpf = loader.load(object).map_err(explain_load)?;
        let mut take = |name: &'static str| -> Result<Map> {
            let map = ebpf
                .take_map(name)
                .with_context(|| format!("the object has no map {name}"))?;
            if let Some(directory) = publish {
                let path = directory.join(name);
                map.pin(&path)
                    .with_context(|| format!("pinning map {name} as {}", path.display()))?;
            }
            Ok(map)
        };
        let tables = Tables::map(&mut take)?;
        let egress = DevMapHash::try_from(take(names::EGRESS)?)?;
        tables
            .control
            .store(control::HASH, 0, hash::fingerprint(&node.hash_keys));
        let mut plane = Self {
            ebpf,
            node,
            cpus: sizes.cpus,
            book: Book::new(tables.slots.entries()),
            tables,
            egress,
            allowed_egress: HashSet::new(),
            epoch: 0,
            services_flipped: None,
            routes_flipped: vec![None; node.backend_capacity as usize],
        };
        plane.program().load().map_err(explain_verifier)?;
        // Better no start than a daemon that cannot change a table: without grace periods nothing can be. It also ends what
        // packets may have read before the last stores of an earlier daemon.
        plane.grace()?;
        Ok(plane)
    }
}

fn explain_load(error: aya::EbpfError) -> anyhow::Error {
    let mut text = format!("the BPF object could not be loaded: {error}");
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            match io.raw_os_error() {
                Some(libc::EPERM) => {
                    text.push_str(" (run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON)")
                }
                Some(libc::ENOMEM | libc::E2BIG) => {
                    text.push_str(" (lower the sizes in [capacity])")
                }
                _ => {}
            }
        }
        source = cause.source();
    }
    anyhow!(text)
}

fn explain_verifier(error: aya::programs::ProgramError) -> anyhow::Error {
    match error {
        aya::programs::ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let tail: Vec<_> = log.lines().rev().take(25).collect();
            let tail: Vec<_> = tail.into_iter().rev().collect();
            anyhow!(
                "the kernel refuses the XDP program: {io_error}\nthe verifier's last words:\n{}",
                tail.join("\n")
            )
        }
        other => anyhow!("the XDP program could not be loaded: {other}"),
    }
}
