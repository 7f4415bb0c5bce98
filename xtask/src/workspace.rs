//! Where things are in this workspace, as cargo tells it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::toolchain;

/// One integration-test binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestTarget {
    pub package: String,
    pub name: String,
}

pub struct Workspace {
    pub root: PathBuf,
    pub target_dir: PathBuf,
    pub tests: Vec<TestTarget>,
}

impl Workspace {
    pub fn find() -> Result<Workspace> {
        let root = root();
        let output = Command::new(cargo_program())
            .current_dir(&root)
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .output()
            .context("can't start cargo")?;
        if !output.status.success() {
            bail!(
                "cargo metadata failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let metadata: Value =
            serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
        let target_dir = metadata["target_directory"]
            .as_str()
            .context("cargo metadata names no target directory")?;
        Ok(Workspace {
            root,
            target_dir: PathBuf::from(target_dir),
            tests: test_targets(&metadata),
        })
    }

    /// cargo, in the workspace, with the workspace's tools in PATH.
    pub fn cargo(&self, args: &[&str]) -> Command {
        let mut cmd = Command::new(cargo_program());
        cmd.args(args)
            .current_dir(&self.root)
            .env("PATH", toolchain::path_with_tools(&self.root));
        cmd
    }

    pub fn binary(&self, release: bool, name: &str) -> PathBuf {
        self.target_dir
            .join(if release { "release" } else { "debug" })
            .join(name)
    }
}

/// The workspace's directory: xtask is always started by cargo from a checkout.
pub fn root() -> PathBuf {
    let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest_dir.parent().unwrap_or(manifest_dir).to_owned()
}

pub fn cargo_program() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

fn test_targets(metadata: &Value) -> Vec<TestTarget> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for package in list(&metadata["packages"]) {
        for target in list(&package["targets"]) {
            let is_test =
                list(&target["kind"]).iter().any(|kind| kind == "test") && target["test"] != false;
            if let (true, Some(package), Some(name)) =
                (is_test, package["name"].as_str(), target["name"].as_str())
            {
                found.push(TestTarget {
                    package: package.to_owned(),
                    name: name.to_owned(),
                });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_targets_are_listed() {
        let metadata = serde_json::json!({"packages": [{"name": "p", "targets": [
            {"kind": ["lib"], "name": "p", "test": true},
            {"kind": ["test"], "name": "suites", "test": true},
            {"kind": ["test"], "name": "off", "test": false},
        ]}]});
        let expected = TestTarget {
            package: "p".into(),
            name: "suites".into(),
        };
        assert_eq!(test_targets(&metadata), [expected]);
    }

    #[test]
    fn this_workspace_is_found() {
        let workspace = Workspace::find().unwrap();
        assert!(workspace.root.join("xtask/Cargo.toml").is_file());
    }
}
