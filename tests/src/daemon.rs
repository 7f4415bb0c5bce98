//! The daemon under test: `sluice run` in the balancer's namespace, and everything said to it through its own CLI.

use std::cell::RefCell;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_userspace::api::dto::{
    BackendAdmin, BackendDetail, Changed, ServiceDetail, ServiceSummary, Status,
};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;

use crate::config::{self, File};
use crate::metrics::{Metrics, http_get, http_get_unix};
use crate::netns::Namespace;
use crate::process::{Process, sluice_binary, tail};
use crate::topology::Lab;
use crate::wait::{wait_for, wait_until};

/// A debug build loading a fresh set of maps on a busy machine.
const READY_TIME: Duration = Duration::from_secs(30);

thread_local! {
    /// The last lines of the daemons that ended on this thread, for the report of a failing test.
    static LAST_LOGS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// What the daemons of this thread said last, forgotten by asking.
pub fn take_last_logs() -> Vec<String> {
    LAST_LOGS.take()
}

/// A running `sluice run`.
pub struct Daemon<'lab> {
    lab: &'lab Lab,
    process: Process,
    files: Files,
}

/// Where one daemon keeps its things.
#[derive(Clone, Debug)]
struct Files {
    config: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    /// The BPF object to load instead of the built-in one.
    object: Option<PathBuf>,
}

/// What a command of the CLI did.
#[derive(Clone, Debug)]
pub struct Said {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    fn from_output(output: &Output) -> Self {
        Self {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Everything it printed.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// An error unless it ended with `code` and printed each of `words`.
    pub fn ensure(&self, code: i32, words: &[&str]) -> Result<&Self> {
        let text = self.text();
        ensure!(
            self.status.code() == Some(code),
            "ended with {} instead of {code}, saying:\n{text}",
            self.status
        );
        for word in words {
            ensure!(text.contains(word), "{word:?} is missing in:\n{text}");
        }
        Ok(self)
    }
}

impl<'lab> Daemon<'lab> {
    /// Writes the file, starts the daemon, waits until it is ready.
    pub fn start(lab: &'lab Lab, file: &File) -> Result<Self> {
        let mut daemon = Self::launch(lab, file)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Writes the file and starts the daemon without waiting.
    pub fn launch(lab: &'lab Lab, file: &File) -> Result<Self> {
        let directory = lab.temporary_directory();
        let files = Files {
            config: directory.join("sluice.toml"),
            socket: config::socket(&directory),
            log: directory.join("sluice.log"),
            object: None,
        };
        fs::write(&files.config, file.text(&directory, &lab.pin_directory()))?;
        let process = spawn(lab.balancer(), &files)?;
        Ok(Self {
            lab,
            process,
            files,
        })
    }

    /// Starts it again with the same file, after [`Daemon::terminate`] or [`Daemon::kill`].
    pub fn restart(&mut self) -> Result<()> {
        self.relaunch()?;
        self.wait_ready()
    }

    /// Starts it again without waiting.
    pub fn relaunch(&mut self) -> Result<()> {
        self.process = spawn(self.lab.balancer(), &self.files)?;
        Ok(())
    }

    /// With which BPF object it starts from now on; `None`: its own.
    pub fn set_object(&mut self, object: Option<&Path>) {
        self.files.object = object.map(Path::to_owned);
    }

    /// Waits until /readyz says 200 and the control socket answers.
    pub fn wait_ready(&mut self) -> Result<()> {
        let address: SocketAddr = config::METRICS.parse()?;
        let (lab, process) = (self.lab, &mut self.process);
        let waited = wait_for("the daemon to be ready (/readyz)", READY_TIME, || {
            if let Some(status) = process.try_wait()? {
                return Ok(Some(Err(anyhow::anyhow!("the daemon ended with {status}"))));
            }
            let (status, body) = lab.balancer().run(|| http_get(address, "/readyz"))?;
            ensure!(status == 200, "/readyz says {status}: {body}");
            Ok(Some(Ok(())))
        });
        waited
            .and_then(|ready| ready)
            .with_context(|| format!("the daemon's log ends with:\n{}", self.log_tail()))
    }

    pub fn config_path(&self) -> &Path {
        &self.files.config
    }

    pub fn socket_path(&self) -> &Path {
        &self.files.socket
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn log_tail(&self) -> String {
        tail(&self.files.log, 40)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.files.log).unwrap_or_default()
    }

    pub fn ensure_running(&mut self) -> Result<()> {
        self.process.ensure_running()
    }

    /// Replaces the configuration file. Nothing is told to the daemon.
    pub fn write_config(&self, file: &File) -> Result<()> {
        let directory = self.lab.temporary_directory();
        self.write_config_text(&file.text(&directory, &self.lab.pin_directory()))
    }

    pub fn write_config_text(&self, text: &str) -> Result<()> {
        fs::write(&self.files.config, text).context("cannot replace the configuration file")
    }

    pub fn config_text(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.files.config)?)
    }

    /// Runs the CLI against this daemon, whatever comes of it.
    pub fn cli(&self, arguments: &[&str]) -> Result<Said> {
        run_cli(self.lab.balancer(), &self.files.socket, arguments)
    }

    /// Runs the CLI with `--json` and reads the answer; an error unless it succeeds.
    pub fn cli_json<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let mut all = arguments.to_vec();
        all.push("--json");
        let said = self.cli(&all)?;
        said.ensure(0, &[])?;
        serde_json::from_str(&said.stdout)
            .with_context(|| format!("`sluice {}` printed\n{}", all.join(" "), said.stdout))
    }

    /// The same answer without starting a process: for watching at a few milliseconds.
    pub fn api<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let (status, body) = http_get_unix(&self.files.socket, path)?;
        ensure!(status == 200, "{path} says {status}: {body}");
        serde_json::from_str(&body).with_context(|| format!("{path} says {body}"))
    }

    pub fn status(&self) -> Result<Status> {
        self.cli_json(&["status"])
    }

    pub fn services(&self) -> Result<Vec<ServiceSummary>> {
        self.cli_json(&["service", "list"])
    }

    pub fn service(&self, name: &str) -> Result<ServiceDetail> {
        self.cli_json(&["service", "show", name])
    }

    /// Those that are part of the service: removed ones are listed, too, while they linger.
    pub fn backends(&self, service: &str) -> Result<Vec<BackendDetail>> {
        Ok(wanted(self.listed(service)?))
    }

    fn listed(&self, service: &str) -> Result<Vec<BackendDetail>> {
        self.cli_json(&["backend", "list", service])
    }

    /// [`Daemon::backends`] over the control socket itself.
    pub fn watch_backends(&self, service: &str) -> Result<Vec<BackendDetail>> {
        let listed = self.api(&format!("/v1/services/{service}/backends"))?;
        Ok(wanted(listed))
    }

    /// One of them, or one that was removed and lingers.
    pub fn backend(&self, service: &str, address: IpAddr) -> Result<BackendDetail> {
        self.listed(service)?
            .into_iter()
            .find(|backend| backend.address == address)
            .with_context(|| format!("service {service} has no backend {address}"))
    }

    /// A changing command, which must succeed.
    pub fn change(&self, arguments: &[&str]) -> Result<Changed> {
        self.cli_json(arguments)
    }

    pub fn reload(&self) -> Result<Changed> {
        self.change(&["reload"])
    }

    /// Waits until a backend is eligible, or is not. Returns how long that took.
    pub fn wait_eligible(
        &self,
        service: &str,
        address: IpAddr,
        eligible: bool,
        limit: Duration,
    ) -> Result<Duration> {
        let state = if eligible {
            "eligible"
        } else {
            "out of the table"
        };
        wait_until(
            &format!("backend {address} of {service} to be {state}"),
            limit,
            || {
                let backend = self.backend(service, address)?;
                Ok(backend.eligible == eligible && (backend.slots > 0) == eligible)
            },
        )
    }

    /// A real scrape.
    pub fn metrics(&self) -> Result<Metrics> {
        let address: SocketAddr = config::METRICS.parse()?;
        let (status, body) = self
            .lab
            .balancer()
            .run(|| http_get(address, "/metrics"))
            .context("cannot scrape")?;
        ensure!(status == 200, "/metrics says {status}: {body}");
        Metrics::parse(body)
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.process.terminate()
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Waits for the daemon to end by itself.
    pub fn wait_for_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.process.wait(limit)?.with_context(|| {
            format!(
                "the daemon was to end within {limit:?}; its log:\n{}",
                self.log_tail()
            )
        })
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let tail = self.log_tail();
        LAST_LOGS.with_borrow_mut(|logs| logs.push(tail));
    }
}

fn spawn(balancer: &Namespace, files: &Files) -> Result<Process> {
    let mut command = balancer.command(sluice_binary()?);
    command.args(["run", "--config"]).arg(&files.config);
    if let Some(object) = &files.object {
        command.arg("--object").arg(object);
    }
    command
        .env("SLUICE_LOG", "debug,hyper=info,h2=info")
        .env("NO_COLOR", "1");
    Process::start("sluice run", command, &files.log)
}

fn wanted(mut listed: Vec<BackendDetail>) -> Vec<BackendDetail> {
    listed.retain(|backend| backend.admin != BackendAdmin::Removed);
    listed
}

/// Runs any CLI command in a namespace, against the daemon at `socket`.
pub fn run_cli(namespace: &Namespace, socket: &Path, arguments: &[&str]) -> Result<Said> {
    let output = namespace
        .command(sluice_binary()?)
        .args(arguments)
        .env("SLUICE_SOCKET", socket)
        .env("NO_COLOR", "1")
        .output()
        .context("cannot run sluice")?;
    Ok(Said::from_output(&output))
}
