//! `sluice diff`, `sluice reset`, `sluice save`: what was changed at run time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use comfy_table::Cell;

use super::output::{Style, Tone, moment};
use super::{Failure, Json, output, wait};
use crate::api::client::Client;
use crate::api::dto::{Difference, DifferenceKind};

/// Show what was changed at run time: in what the state that holds differs from the configuration file
///
/// Run-time changes are kept on disk; they survive reloads and restarts, until `sluice reset` or the file says the same.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice diff
  sluice diff --json | jq '.differences[] | select(.kind == \"admin\")'")]
pub struct DiffArgs {
    #[command(flatten)]
    json: Json,
}

/// Drop every change made at run time: the configuration file alone holds
///
/// Drained and disabled backends are active again, added services and backends go, removed ones come back. Asks nothing;
/// `sluice diff` shows beforehand what would go.
#[derive(Debug, Args)]
pub struct ResetArgs {
    #[command(flatten)]
    json: Json,
}

/// Print the configuration file with the run-time changes written into it
///
/// Comments of the file are lost. That a backend is drained or disabled has no key in the file: it is named in a comment and
/// stays a run-time change. With that file in its place, `sluice reload` leaves nothing else for `sluice diff` to show.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice save | diff /etc/sluice/sluice.toml -
  sudo sluice save --to /etc/sluice/sluice.toml && sudo sluice reload")]
pub struct SaveArgs {
    /// Write it there instead; a file that is there is kept beside it as FILE.old
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

pub fn diff(args: DiffArgs, client: &Client) -> Result<(), Failure> {
    let diff = wait(client.overlay())??;
    if args.json.json {
        return output::print_json(&diff);
    }
    if diff.differences.is_empty() {
        return output::print(&format!("nothing differs from {}\n", diff.config));
    }
    output::print(&table(&diff.differences, Style::stdout()))
}

pub fn reset(args: ResetArgs, client: &Client) -> Result<(), Failure> {
    let reset = wait(client.overlay_reset())??;
    if args.json.json {
        return output::print_json(&reset);
    }
    if !reset.dropped.is_empty() {
        output::print(&(table(&reset.dropped, Style::stdout()) + "\n"))?;
    }
    output::print_changed(&reset.changed, false)
}

pub fn save(args: SaveArgs, client: &Client) -> Result<(), Failure> {
    let toml = wait(client.merged_config())??;
    let Some(to) = args.to else {
        return output::print(&toml);
    };
    let kept =
        replace(&to, &toml).with_context(|| format!("{}: cannot be written", to.display()))?;
    let mut text: String = toml
        .lines()
        .take_while(|line| line.starts_with('#'))
        .map(|line| format!("{}\n", line.trim_start_matches("# ")))
        .collect();
    text.push_str(&format!("Written to {}", to.display()));
    if let Some(kept) = kept {
        text.push_str(&format!(", what was there is now {}", kept.display()));
    }
    text.push_str(". `sluice reload` puts the daemon's file in force.\n");
    output::print(&text)
}

/// Puts `text` in the place of a file, which is kept under another name (returned), or makes one.
fn replace(file: &Path, text: &str) -> io::Result<Option<PathBuf>> {
    // Where a link leads, so that it stays a link.
    let (file, mode) = match fs::metadata(file) {
        Ok(metadata) => (fs::canonicalize(file)?, Some(metadata.permissions().mode())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (file.to_owned(), None),
        Err(error) => return Err(error),
    };
    let beside = |suffix: &str| {
        let mut name = file.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    };
    let temporary = beside(".new");
    let write = || -> io::Result<()> {
        let mut new = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o640)
            .open(&temporary)?;
        new.write_all(text.as_bytes())?;
        if let Some(mode) = mode {
            new.set_permissions(fs::Permissions::from_mode(mode & 0o777))?;
        }
        new.sync_all()
    };
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => write()?,
    }
    let kept = mode.map(|_| beside(".old"));
    if let Some(kept) = &kept {
        // A copy, so that there is a file at every moment.
        fs::copy(&file, kept)?;
    }
    fs::rename(&temporary, &file)?;
    let directory = file.parent().filter(|parent| *parent != Path::new(""));
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(kept)
}

fn table(differences: &[Difference], style: Style) -> String {
    let header = [
        "SERVICE", "BACKEND", "WHAT", "FILE", "NOW", "BY", "AT", "REASON",
    ];
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let rows = differences
        .iter()
        .map(|difference| {
            let (what, tone) = match difference.kind {
                DifferenceKind::ServiceAdded => ("service added", Tone::Good),
                DifferenceKind::ServiceRemoved => ("service removed", Tone::Bad),
                DifferenceKind::BackendAdded => ("backend added", Tone::Good),
                DifferenceKind::BackendRemoved => ("backend removed", Tone::Bad),
                DifferenceKind::Place => ("place", Tone::Plain),
                DifferenceKind::Weight => ("weight", Tone::Plain),
                DifferenceKind::Admin => ("state", Tone::Doubtful),
            };
            vec![
                Cell::new(&difference.service),
                Cell::new(
                    difference
                        .backend
                        .map_or_else(String::new, |b| b.to_string()),
                ),
                style.cell(what, tone),
                Cell::new(text(&difference.file)),
                Cell::new(text(&difference.now)),
                Cell::new(text(&difference.by)),
                Cell::new(difference.at.map_or_else(String::new, moment)),
                Cell::new(text(&difference.reason)),
            ]
        })
        .collect();
    style.table(&header, &[], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sluice.toml");
        assert_eq!(replace(&file, "one").unwrap(), None);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&file) & 0o137, 0, "not everybody's");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let link = directory.path().join("link.toml");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let kept = replace(&link, "two").unwrap().expect("there was one");
        assert_eq!(fs::read_to_string(&file).unwrap(), "two");
        assert_eq!(fs::read_to_string(kept).unwrap(), "one");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(mode(&file), 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    }
}
