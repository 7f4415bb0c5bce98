//! The compiled BPF objects: those that are part of the binary, and a balancer's from a file.
//!
//! Owns: whether a file holds a balancer that this daemon can program. Does not own: whether the kernel takes it (`kernel`).

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::include_bytes_aligned;
use aya_obj::{Object, ProgramSection};
use lb_common::abi::names;

pub static BALANCER: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/balancer"));
pub static DECAP: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decap"));

/// A balancer's object that was built apart.
///
/// # Errors
/// With the file's name, when it cannot be read, is no BPF object, has no balancer, or one whose maps are laid out in another way
/// than the built-in one's: the daemon would write what the program does not expect.
pub fn read_balancer(file: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(file).with_context(|| format!("object {}", file.display()))?;
    match_builtin(&bytes).with_context(|| format!("object {}", file.display()))?;
    Ok(bytes)
}

fn match_builtin(bytes: &[u8]) -> Result<()> {
    let object = Object::parse(bytes).map_err(|error| anyhow!("it is no BPF object: {error}"))?;
    let builtin = Object::parse(BALANCER).context("the built-in object")?;
    ensure!(
        object
            .programs
            .get(names::BALANCER)
            .is_some_and(|program| matches!(program.section, ProgramSection::Xdp { .. })),
        "it has no program {} for XDP: it is not lb-ebpf's balancer",
        names::BALANCER
    );
    // Sections of data are maps, too; NODE, the only global, is checked when it is set.
    let named = |(name, _): &(&String, _)| !name.starts_with('.');
    for (name, map) in builtin.maps.iter().filter(named) {
        let found = object.maps.get(name).with_context(|| {
            format!("it has no map {name}: build it from this version's sources")
        })?;
        let shape = |map: &aya_obj::Map| {
            (
                map.map_type(),
                map.key_size(),
                map.value_size(),
                map.map_flags(),
            )
        };
        ensure!(
            shape(found) == shape(map),
            "its map {name} has (type, key, value, flags) {:?} instead of {:?}: build it from this version's sources",
            shape(found),
            shape(map)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        format!("{:#}", match_builtin(bytes).unwrap_err())
    }

    #[test]
    fn the_built_in_balancer_is_one() {
        match_builtin(BALANCER).unwrap();
    }

    #[test]
    fn what_is_no_balancer_is_refused() {
        assert!(refusal(b"#!/bin/sh\n").contains("no BPF object"));
        assert!(refusal(&BALANCER[..BALANCER.len() / 2]).contains("no BPF object"));
        assert!(refusal(DECAP).contains("no program sluice_balancer"));
    }

    /// A map's name in the string table, spoilt: as if another version had called it so.
    #[test]
    fn another_versions_maps_are_refused() {
        let mut bytes = BALANCER.to_vec();
        let name = b"\0BACKEND_COUNTERS\0";
        let places: Vec<_> = bytes
            .windows(name.len())
            .enumerate()
            .filter(|(_, window)| *window == name)
            .map(|(at, _)| at)
            .collect();
        assert!(!places.is_empty());
        for at in places {
            bytes[at + 1] = b'P';
        }
        assert!(refusal(&bytes).contains("no map BACKEND_COUNTERS"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read_balancer(Path::new("/nonexistent/balancer.o")).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent/balancer.o"));
    }
}
