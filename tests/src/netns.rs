//! Network namespaces: made, entered, removed.
//!
//! Owns: the namespace files under `/run/netns` and how threads and processes get into them. Does not own: what is
//! inside (`topology`) or which ones belong to a dead laboratory (`registry`).
//!
//! Only the *network* namespace changes. `ip netns exec` would also give the process a mount namespace of its own,
//! in which bpffs is hidden and pinning fails.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where iproute2 looks for namespaces by name, so that `ip -n NAME …` works on ours while a test is being debugged.
pub const DIRECTORY: &str = "/run/netns";

/// A network namespace with a name; removed on drop.
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Makes an empty namespace and gives it a name.
    pub fn create(name: &str) -> Result<Self> {
        fs::create_dir_all(DIRECTORY).with_context(|| format!("cannot make {DIRECTORY}"))?;
        let path = path_of(name);
        File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let made = thread::scope(|scope| scope.spawn(|| bind_new_namespace(&path)).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        if let Err(error) = made {
            let _ = fs::remove_file(&path);
            return Err(error)
                .with_context(|| format!("cannot make network namespace {name} (root is needed)"));
        }
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self {
            name: name.to_owned(),
            file,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread of its own inside the namespace and waits for it. A panic inside is passed on.
    ///
    /// Sockets made by `work` stay in the namespace wherever they are used later.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter();
                    work()
                })
                .join()
        })
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts a thread inside the namespace.
    pub fn spawn_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<T>> {
        let file = self
            .file
            .try_clone()
            .context("cannot duplicate a namespace's descriptor")?;
        let handle = thread::Builder::new()
            .name(self.name.clone())
            .spawn(move || {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET)
                    .expect("a namespace we hold open can be entered");
                work()
            })?;
        Ok(handle)
    }

    /// A command that will run inside the namespace, with no signal blocked.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let namespace = self.file.as_raw_fd();
        // SAFETY: the closure runs between fork and exec and only makes the async-signal-safe system calls setns and
        // sigprocmask; the descriptor stays open, because `self` outlives every `spawn` in the laboratory.
        unsafe {
            command.pre_exec(move || {
                if libc::setns(namespace, libc::CLONE_NEWNET) != 0 {
                    return Err(io::Error::last_os_error());
                }
                unblock_signals()
            });
        }
        command
    }

    /// Runs a batch of iproute2 commands inside the namespace: one process for many changes.
    pub fn ip_batch(&self, commands: &str) -> Result<()> {
        use std::io::Write;
        use std::process::Stdio;
        let mut child = self
            .command("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start `ip` (Debian: apt-get install iproute2)")?;
        child
            .stdin
            .take()
            .context("ip has no stdin")?
            .write_all(commands.as_bytes())?;
        let output = child.wait_with_output()?;
        anyhow::ensure!(
            output.status.success(),
            "ip -batch failed in {}: {}\nthe batch was:\n{commands}",
            self.name,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Writes sysctls below `/proc/sys/net`; the kernel takes the namespace from the writing thread.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in settings {
                let path = Path::new("/proc/sys/net").join(key);
                fs::write(&path, value)
                    .with_context(|| format!("cannot write {value} to {}", path.display()))?;
            }
            Ok(())
        })
    }

    fn enter(&self) {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
            .expect("a namespace we hold open can be entered");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Takes a namespace's name away; the kernel frees it, links included, once no process or socket is inside.
pub fn remove(name: &str) {
    let path = path_of(name);
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(&path);
}

/// For `pre_exec`: Rust lets a child inherit the signal mask, and ours blocks what [`crate::registry`] waits for.
pub(crate) fn unblock_signals() -> io::Result<()> {
    // SAFETY: both calls only touch the local set and this thread's own mask.
    unsafe {
        let mut empty = std::mem::zeroed();
        libc::sigemptyset(&mut empty);
        if libc::sigprocmask(libc::SIG_SETMASK, &empty, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn path_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

fn bind_new_namespace(path: &Path) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    mount(
        Some("/proc/thread-self/ns/net"),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
}
