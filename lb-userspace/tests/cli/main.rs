//! The built binary against a served socket: what it prints, and with which code it exits.

mod changing;
mod draining;
mod reading;
mod refusing;
#[path = "../served/mod.rs"]
mod served;

use std::path::Path;
use std::process::{Command, Output, Stdio};

const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");

fn command(program: impl AsRef<std::ffi::OsStr>, socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("SLUICE_SOCKET", socket)
        .stdin(Stdio::null());
    command
}

/// What was printed, and the exit code.
struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("no signal ended it"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn sluice(socket: &Path, arguments: &[&str]) -> Said {
    command(SLUICE, socket, arguments).output().unwrap().into()
}

/// Runs it, expects success and silence on stderr, and returns stdout.
fn done(socket: &Path, arguments: &[&str]) -> String {
    let said = sluice(socket, arguments);
    assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{arguments:?}");
    said.stdout
}

fn json<T: serde::de::DeserializeOwned>(socket: &Path, arguments: &[&str]) -> T {
    let text = done(socket, arguments);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error} in {text}"))
}
