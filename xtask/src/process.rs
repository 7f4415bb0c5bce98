//! Running other programs within a time limit, and as root.
//!
//! Owns process groups, time-outs, signal forwarding and sudo; knows nothing about what is run.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, IsTerminal as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicBool, AtomicI32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{toolchain, workspace};

const POLL: Duration = Duration::from_millis(20);
/// Between asking a group to end and ending it.
const GRACE: Duration = Duration::from_secs(5);

/// The group of the program running now: 0 for none.
static GROUP: AtomicI32 = AtomicI32::new(0);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn forward(signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
    kill_group(GROUP.load(Ordering::Relaxed), signal);
}

fn kill_group(group: i32, signal: libc::c_int) {
    if group > 1 {
        // SAFETY: kill(2) takes no pointers and is async-signal-safe.
        unsafe { libc::kill(-group, signal) };
    }
}

/// Children get a group of their own, so that a time-out reaches all they started; Ctrl-C then has to be passed on.
pub fn forward_signals() {
    let handler = forward as extern "C" fn(libc::c_int) as libc::sighandler_t;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to and loads from atomics and calls kill(2): async-signal-safe.
        unsafe { libc::signal(signal, handler) };
    }
}

pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Runs to the end with the terminal shared.
pub fn run(cmd: &mut Command, limit: Duration) -> Result<ExitStatus> {
    let mut child = spawn(cmd)?;
    wait(cmd, &mut child, limit, || thread::sleep(POLL))
}

/// Like `run`, but a bad end is an error that shows the command.
pub fn must(cmd: &mut Command, limit: Duration) -> Result<()> {
    let status = run(cmd, limit)?;
    if !status.success() {
        bail!("`{}` failed ({status})", show(cmd));
    }
    Ok(())
}

/// Runs to the end; each line of its standard output goes to `line` as it comes.
pub fn stream(
    cmd: &mut Command,
    limit: Duration,
    mut line: impl FnMut(&str),
) -> Result<ExitStatus> {
    cmd.stdout(Stdio::piped());
    let mut child = spawn(cmd)?;
    let stdout = child
        .stdout
        .take()
        .context("the child has no standard output")?;
    let (sender, lines) = mpsc::channel();
    // Detached: something that left the group with our pipe in its hands could keep it reading for ever.
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut bytes = Vec::new();
        while reader
            .read_until(b'\n', &mut bytes)
            .is_ok_and(|read| read > 0)
        {
            let text = String::from_utf8_lossy(&bytes)
                .trim_end_matches('\n')
                .to_owned();
            if sender.send(text).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    let status = wait(cmd, &mut child, limit, || {
        if let Ok(text) = lines.recv_timeout(POLL) {
            line(&text);
        } else {
            // Disconnected comes at once: not a reason to spin.
            thread::sleep(POLL / 4);
        }
    });
    // What was written before the end may still be on its way.
    let deadline = Instant::now() + GRACE;
    while let Ok(text) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        line(&text);
    }
    status
}

/// The output of a quick question; `None` when the program is missing, fails or says something that isn't text.
pub fn ask(program: impl AsRef<OsStr>, args: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8(output.stdout).ok())
        .flatten()
}

fn spawn(cmd: &mut Command) -> Result<Child> {
    let child = cmd
        .process_group(0)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("can't start `{}`", show(cmd)))?;
    GROUP.store(child.id() as i32, Ordering::Relaxed);
    Ok(child)
}

/// Waits for the end, or makes one when `limit` is over. `meanwhile` is called again and again, and must be short.
fn wait(
    cmd: &Command,
    child: &mut Child,
    limit: Duration,
    mut meanwhile: impl FnMut(),
) -> Result<ExitStatus> {
    let mut until = |child: &mut Child, deadline: Instant| -> Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            meanwhile();
        }
    };
    let group = child.id() as i32;
    let mut status = until(child, Instant::now() + limit)?;
    let expired = status.is_none();
    if expired {
        kill_group(group, libc::SIGTERM);
        status = until(child, Instant::now() + GRACE)?;
        kill_group(group, libc::SIGKILL);
    }
    GROUP.store(0, Ordering::Relaxed);
    let status = match status {
        Some(status) => status,
        None => child.wait()?,
    };
    if expired {
        bail!(
            "`{}` was ended: not done after {} s",
            show(cmd),
            limit.as_secs()
        );
    }
    Ok(status)
}

/// The command as a person would type it.
pub fn show(cmd: &Command) -> String {
    let words = std::iter::once(cmd.get_program()).chain(cmd.get_args());
    let words: Vec<_> = words
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    words.join(" ")
}

/// How this process can do what only root may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// It is root.
    Is,
    /// sudo works without asking.
    Sudo,
    /// Only after a password, or never.
    No,
}

impl Root {
    pub fn detect() -> Root {
        // SAFETY: geteuid(2) takes nothing and can't fail.
        if unsafe { libc::geteuid() } == 0 {
            Root::Is
        } else if ask("sudo", &["-n", "true"]).is_some() {
            Root::Sudo
        } else {
            Root::No
        }
    }

    /// The words before a command that has to run as root, keeping our environment, with the workspace's tools in PATH
    /// (which sudo replaces).
    pub fn prefix(self) -> Option<Vec<String>> {
        let path = toolchain::path_with_tools(&workspace::root());
        let path = format!("PATH={}", path.to_string_lossy());
        match self {
            Root::Is => Some(vec!["env".to_owned(), path]),
            Root::Sudo => Some(
                ["sudo", "-n", "-E", "env", &path]
                    .map(str::to_owned)
                    .to_vec(),
            ),
            Root::No => None,
        }
    }

    /// As `prefix`, with a person at the terminal who can type a password.
    pub fn prefix_interactive(self) -> Option<Vec<String>> {
        let person = std::io::stdin().is_terminal() && ask("sudo", &["-V"]).is_some();
        self.prefix().or_else(|| {
            let mut words = Root::Sudo.prefix()?;
            words.retain(|word| word != "-n");
            person.then_some(words)
        })
    }
}

/// `words` as a command, prefix first.
pub fn command(prefix: &[String], words: &[&str]) -> Command {
    let mut all = prefix
        .iter()
        .map(String::as_str)
        .chain(words.iter().copied());
    let mut cmd = Command::new(all.next().unwrap_or("true"));
    cmd.args(all);
    cmd
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_lines_as_they_come_and_keeps_the_status() {
        let mut lines = Vec::new();
        let status = stream(
            Command::new("sh").args(["-c", "echo one; printf two; exit 3"]),
            Duration::from_secs(10),
            |line| lines.push(line.to_owned()),
        );
        assert_eq!(status.unwrap().code(), Some(3));
        assert_eq!(lines, ["one", "two"]);
    }

    #[test]
    fn a_time_out_ends_grandchildren_too() {
        let started = Instant::now();
        let mut pid = String::new();
        let result = stream(
            Command::new("sh").args(["-c", "sleep 600 & echo $!; wait"]),
            Duration::from_millis(300),
            |line| pid = line.to_owned(),
        );
        let message = format!("{:#}", result.unwrap_err());
        assert!(message.contains("not done after"), "{message}");
        assert!(started.elapsed() < Duration::from_secs(20));
        // The signal is on its way when `stream` returns; a killed process may then linger as a zombie of whoever
        // adopted it.
        let gone = || {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            state.is_empty() || state.contains(") Z")
        };
        assert!(!pid.is_empty());
        while !gone() {
            assert!(started.elapsed() < GRACE, "{pid} is still running");
            thread::sleep(POLL);
        }
    }

    #[test]
    fn a_missing_program_is_named() {
        let message = format!(
            "{:#}",
            run(&mut Command::new("sluice-no-such"), POLL).unwrap_err()
        );
        assert!(message.contains("sluice-no-such"), "{message}");
    }
}
