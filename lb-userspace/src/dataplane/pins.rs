//! Where the data path outlives the daemon: a directory in bpffs.
//!
//! ```text
//! <node.pin>/<layout>/links/balancer-<mode>-<ifindex>   what keeps the program attached
//! <node.pin>/<layout>/maps-<n>/<MAP>                    the maps it reads; the greatest n is in force
//! ```
//! A set of maps appears whole, by one rename, before a program that reads it is attached; older sets go when no program reads them.
//! So whenever a daemon dies, the next one finds a whole set, or nothing.
//!
//! Owns: paths, who may use them, what is ours. Does not own: links (`attach`), nor what is in the maps (`tables`, `found`).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lb_common::abi::LAYOUT;
use nix::errno::Errno;
use nix::fcntl::Flock;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::attach::{self, BALANCER_PREFIX};
use crate::claim;

/// The links of versions that did not pin their maps.
const UNVERSIONED_LINKS: &str = "links";
const LINKS: &str = "links";
const SET: &str = "maps-";
/// A set that is being made.
const UNFINISHED: &str = "maps-new";

/// The directory `node.pin`.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    pub fn new(pin: &Path) -> Self {
        Self {
            root: pin.to_owned(),
        }
    }

    fn layout(&self) -> PathBuf {
        self.root.join(LAYOUT.to_string())
    }

    /// Where links are pinned.
    pub fn links(&self) -> PathBuf {
        self.layout().join(LINKS)
    }

    /// Makes the directory and takes it for this process alone, until the returned lock is dropped. Waits a moment for a daemon
    /// that is about to be gone.
    ///
    /// # Errors
    /// When it is not inside a mounted bpffs, or another process has it.
    pub fn claim(&self) -> Result<Flock<File>> {
        prepare(&self.root)?;
        let root = self.root.display();
        let file = File::open(&self.root).with_context(|| format!("pin directory {root}"))?;
        claim::exclusive(file).map_err(|errno| match errno {
            Errno::EWOULDBLOCK => anyhow!(
                "another sluice uses the pin directory {root}: stop it, or set node.pin to another place in the same file system"
            ),
            other => anyhow!("pin directory {root}: {other}"),
        })
    }

    /// Whether a program of ours may be forwarding.
    pub fn carries_traffic(&self) -> bool {
        attach::is_pinned(&self.links(), BALANCER_PREFIX)
    }

    /// # Errors
    /// When a version with another layout of maps left a data path here: its maps say nothing to this version, and a second
    /// program cannot be attached beside its.
    pub fn refuse_others(&self) -> Result<()> {
        for other in self.others()? {
            ensure!(
                holds_nothing(&other)?,
                "{} holds the data path of another version of Sluice (maps of another layout; this version has layout {LAYOUT}), \
                 which goes on forwarding. Run the version that made it; or take it down with `sluice detach`, which resets \
                 connections, and start again (what is there even then is not Sluice's: remove it by hand)",
                other.display()
            );
        }
        Ok(())
    }

    /// Directories of other layouts.
    fn others(&self) -> Result<Vec<PathBuf>> {
        let mut others = Vec::new();
        for entry in list(&self.root)? {
            let name = entry.file_name().map(|n| n.to_string_lossy().into_owned());
            let other = name.is_some_and(|name| {
                name == UNVERSIONED_LINKS
                    || (name.parse::<u32>().is_ok() && name != LAYOUT.to_string())
            });
            if other {
                others.push(entry);
            }
        }
        Ok(others)
    }

    /// The set of maps in force: its number and directory.
    pub fn current(&self) -> Result<Option<(u32, PathBuf)>> {
        Ok(self.sets()?.into_iter().max_by_key(|(number, _)| *number))
    }

    fn sets(&self) -> Result<Vec<(u32, PathBuf)>> {
        let number = |path: &PathBuf| -> Option<u32> {
            let name = path.file_name()?.to_str()?;
            name.strip_prefix(SET)?.parse().ok()
        };
        let all = list(&self.layout())?.into_iter();
        Ok(all
            .filter_map(|path| number(&path).map(|n| (n, path)))
            .collect())
    }

    /// An empty directory to pin a new set in.
    pub fn begin_set(&self) -> Result<PathBuf> {
        let directory = self.layout().join(UNFINISHED);
        remove(&directory)?;
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        Ok(directory)
    }

    /// Puts the set that was begun in force.
    pub fn publish_set(&self) -> Result<()> {
        let next = self.current()?.map_or(1, |(number, _)| number + 1);
        let set = self.layout().join(format!("{SET}{next}"));
        fs::rename(self.layout().join(UNFINISHED), &set)
            .with_context(|| format!("pinning the maps as {}", set.display()))
    }

    /// Unpins every set but the one in force. Only when no program reads them.
    pub fn drop_older_sets(&self) -> Result<()> {
        let current = self.current()?.map(|(number, _)| number);
        for (number, path) in self.sets()? {
            if Some(number) != current {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// [`Pins::detach`], when no daemon is there.
    ///
    /// # Errors
    /// When one is: it would attach again.
    pub fn detach_alone(&self) -> Result<Vec<String>> {
        if !self.root.exists() {
            return Ok(Vec::new());
        }
        let _claimed = self.claim()?;
        self.detach()
    }

    /// Takes the whole data path down, whatever version made it: removes every pin of ours. Returns the interfaces freed.
    pub fn detach(&self) -> Result<Vec<String>> {
        let mut freed = Vec::new();
        let mut layouts = self.others()?;
        layouts.push(self.layout());
        for layout in layouts {
            let versioned = layout.file_name().is_none_or(|n| n != UNVERSIONED_LINKS);
            let links = if versioned {
                layout.join(LINKS)
            } else {
                layout.clone()
            };
            // First what packets come in by; the maps go after.
            freed.extend(attach::detach_others(&links, BALANCER_PREFIX, &[])?);
            if versioned {
                for entry in list(&layout)? {
                    let name = entry.file_name().map(|n| n.to_string_lossy().into_owned());
                    if name.is_some_and(|name| name.starts_with(SET)) {
                        remove(&entry)?;
                    }
                }
            }
            for empty in [links.as_path(), layout.as_path()] {
                remove_if_empty(empty)?;
            }
        }
        remove_if_empty(&self.root)?;
        freed.sort();
        freed.dedup();
        Ok(freed)
    }
}

/// Makes a directory inside a mounted bpffs.
pub(super) fn prepare(directory: &Path) -> Result<()> {
    // The nearest ancestor that exists tells the file system.
    let existing = directory
        .ancestors()
        .find(|p| p.exists())
        .context("no such path")?;
    let kind = statfs(existing)
        .with_context(|| format!("{}", existing.display()))?
        .filesystem_type();
    ensure!(
        kind == BPF_FS_MAGIC,
        "{} is not inside a BPF file system: mount it (`mount -t bpf bpf /sys/fs/bpf`) or set node.pin to a place in one",
        directory.display()
    );
    fs::create_dir_all(directory).with_context(|| format!("pin directory {}", directory.display()))
}

fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("{}", directory.display())),
    };
    entries
        .map(|entry| {
            Ok(entry
                .with_context(|| format!("{}", directory.display()))?
                .path())
        })
        .collect()
}

/// Whether there is no pin below `directory`.
fn holds_nothing(directory: &Path) -> Result<bool> {
    for entry in list(directory)? {
        if !entry.is_dir() || !holds_nothing(&entry)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// What is not empty has somebody's own pins.
fn remove_if_empty(directory: &Path) -> Result<()> {
    match fs::remove_dir(directory) {
        Ok(()) => Ok(()),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Ok(())
        }
        Err(error) => bail!("{}: {error}", directory.display()),
    }
}
