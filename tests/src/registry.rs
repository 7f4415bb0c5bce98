//! Who cleans up: every laboratory of this process, also on Ctrl-C, and those that dead processes left behind.
//!
//! Owns: the naming rule (`sluice-lab-<pid>-<n>`), the list of living laboratories, and removal by name. A laboratory
//! that ends in the usual way is taken down by its own `Drop`, which ends here as well.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::netns;

const PREFIX: &str = "sluice-lab-";
/// How long processes left in a laboratory may take to die of SIGKILL.
const KILL_TIME: Duration = Duration::from_secs(2);

static LIVING: Mutex<Vec<LabId>> = Mutex::new(Vec::new());
static COUNTER: AtomicU32 = AtomicU32::new(1);

/// The name of a laboratory: whose it is and which one of theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabId {
    pid: i32,
    number: u32,
}

impl LabId {
    /// A new name, remembered until [`LabId::remove`].
    pub fn register() -> Self {
        let id = Self {
            pid: Pid::this().as_raw(),
            number: COUNTER.fetch_add(1, Ordering::Relaxed),
        };
        LIVING
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
            .push(id);
        id
    }

    pub fn namespace(self, role: &str) -> String {
        format!("{self}-{role}")
    }

    /// This laboratory's own directory in bpffs.
    pub fn pin_directory(self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(self.to_string())
    }

    /// Configuration, sockets, state and logs.
    pub fn temporary_directory(self) -> PathBuf {
        std::env::temp_dir().join(self.to_string())
    }

    /// Removes whatever still carries the name: processes in its namespaces, pins, namespaces, files.
    pub fn remove(self) {
        let namespaces = self.namespaces();
        kill_processes_inside(&namespaces);
        let _ = fs::remove_dir_all(self.pin_directory());
        for name in namespaces {
            netns::remove(&name);
        }
        let _ = fs::remove_dir_all(self.temporary_directory());
        LIVING
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
            .retain(|other| *other != self);
    }

    fn namespaces(self) -> Vec<String> {
        let prefix = format!("{self}-");
        names_in(netns::DIRECTORY)
            .into_iter()
            .filter(|name| name.starts_with(&prefix))
            .collect()
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(PREFIX)?.splitn(3, '-');
        Some(Self {
            pid: parts.next()?.parse().ok()?,
            number: parts.next()?.parse().ok()?,
        })
    }

    fn is_stale(self) -> bool {
        self.pid != Pid::this().as_raw()
            && kill(Pid::from_raw(self.pid), None) == Err(nix::errno::Errno::ESRCH)
    }
}

impl std::fmt::Display for LabId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PREFIX}{}-{}", self.pid, self.number)
    }
}

/// Removes the laboratories of processes that no longer exist. Returns how many.
pub fn sweep_stale() -> usize {
    let temporary = std::env::temp_dir();
    let mut stale: Vec<LabId> = Vec::new();
    for directory in [
        Path::new(netns::DIRECTORY),
        Path::new("/sys/fs/bpf"),
        temporary.as_path(),
    ] {
        for id in names_in(directory)
            .iter()
            .filter_map(|name| LabId::parse(name))
        {
            if id.is_stale() && !stale.contains(&id) {
                stale.push(id);
            }
        }
    }
    for id in &stale {
        id.remove();
    }
    stale.len()
}

/// From now on SIGINT and SIGTERM remove every living laboratory and then end the process.
///
/// To be called from `main` before any other thread exists, because threads inherit the signal mask.
pub fn clean_up_on_signals() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals
        .thread_block()
        .context("cannot block SIGINT and SIGTERM")?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let Ok(signal) = signals.wait() else { return };
            eprintln!("\n{signal}: taking the laboratory down");
            let living = LIVING
                .lock()
                .unwrap_or_else(|poison| poison.into_inner())
                .clone();
            for id in living {
                id.remove();
            }
            std::process::exit(128 + signal as i32);
        })?;
    Ok(())
}

/// Kills processes (never this one) whose network namespace is one of `names`, and waits for their end.
fn kill_processes_inside(names: &[String]) {
    let inodes: Vec<u64> = names
        .iter()
        .filter_map(|name| fs::metadata(Path::new(netns::DIRECTORY).join(name)).ok())
        .map(|meta| meta.ino())
        .collect();
    let deadline = Instant::now() + KILL_TIME;
    loop {
        let inside = processes_inside(&inodes);
        if inside.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in inside {
            let _ = kill(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn processes_inside(inodes: &[u64]) -> Vec<Pid> {
    if inodes.is_empty() {
        return Vec::new();
    }
    names_in("/proc")
        .iter()
        .filter_map(|name| name.parse::<i32>().ok())
        .filter(|&pid| pid != Pid::this().as_raw())
        // A zombie has no namespace any more, so it is not found here.
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|meta| inodes.contains(&meta.ino()))
        })
        .map(Pid::from_raw)
        .collect()
}

fn names_in(directory: impl AsRef<Path>) -> Vec<String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_with_and_without_a_role() {
        let id = LabId { pid: 41, number: 7 };
        assert_eq!(LabId::parse(&id.to_string()), Some(id));
        assert_eq!(LabId::parse(&id.namespace("backend1")), Some(id));
        assert_eq!(LabId::parse("sluice-lab-x-1"), None);
        assert_eq!(LabId::parse("sluice"), None);
    }

    #[test]
    fn a_living_process_is_not_stale() {
        assert!(!LabId { pid: 1, number: 1 }.is_stale());
        assert!(
            !LabId {
                pid: Pid::this().as_raw(),
                number: 1
            }
            .is_stale()
        );
    }
}
