//! The node's hash seed: from the configuration, else made at first start and kept in the state directory.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use rand::RngCore as _;

use crate::model::NodeSpec;

/// The seed to use. A made one is on disk before it is returned: the same flows must meet the same slots after a restart.
pub fn obtain(node: &NodeSpec) -> Result<String> {
    if let Some(seed) = &node.hash_seed {
        return Ok(seed.clone());
    }
    let path = node.state.join("hash_seed");
    match fs::read_to_string(&path) {
        Ok(seed) if !seed.trim().is_empty() => Ok(seed.trim().to_owned()),
        Ok(_) => make(&node.state, &path),
        Err(error) if error.kind() == ErrorKind::NotFound => make(&node.state, &path),
        Err(error) => {
            Err(error).with_context(|| format!("{}: the node's hash seed", path.display()))
        }
    }
}

fn make(directory: &Path, path: &Path) -> Result<String> {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    let seed: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(directory)?;
        let temporary = directory.join("hash_seed.new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        writeln!(file, "{seed}")?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    };
    write().with_context(|| {
        format!("{}: the hash seed cannot be kept there; set node.hash_seed, or node.state to a writable directory", directory.display())
    })?;
    Ok(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_seed_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let node = NodeSpec {
            interfaces: vec![],
            xdp_mode: crate::model::XdpMode::Auto,
            source: vec![],
            hash_seed: None,
            pin: "/sys/fs/bpf/sluice".into(),
            state: directory.path().join("state"),
            icmp_echo: lb_common::service::Echo::default(),
        };
        let seed = obtain(&node).unwrap();
        assert_eq!(seed.len(), 32);
        assert_eq!(obtain(&node).unwrap(), seed);
        let configured = NodeSpec {
            hash_seed: Some("fleet".into()),
            ..node
        };
        assert_eq!(obtain(&configured).unwrap(), "fleet");
    }
}
