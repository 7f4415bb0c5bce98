//! Where run-time changes are kept: `<node.state>/overlay.json`, replaced whole, so that whenever the daemon or the machine
//! dies the file is the old one or the new one.
//!
//! Owns: the order of writing, syncing and renaming; what to say when it fails. Does not own: what is in the document (`state`),
//! nor when it is written (`owner`). Why this order: docs/decisions/0012-overlay.md.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::Flock;

use crate::claim;
use crate::state::{DocumentError, Overlay};

/// The document's name in the state directory.
pub const NAME: &str = "overlay.json";
/// What is being written; nothing counts until it is renamed.
const TEMPORARY: &str = "overlay.json.new";
/// The document as it was before entries were dropped at a start.
const FORMER: &str = "overlay.json.old";

/// A directory, as far as the store needs one. Tests put one in its place that dies half-way.
pub trait Disk {
    type File: Write;
    /// `None`: there is no such file.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// An empty file of this name, whatever was there.
    fn create(&mut self, name: &str) -> io::Result<Self::File>;
    fn sync(&mut self, file: &mut Self::File) -> io::Result<()>;
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    fn sync_directory(&mut self) -> io::Result<()>;
    /// That there is no such file is no error.
    fn remove(&mut self, name: &str) -> io::Result<()>;
}

/// The state directory, locked while this lives: two daemons would overwrite each other's changes.
pub struct Directory {
    path: PathBuf,
    handle: Flock<File>,
}

impl Disk for Directory {
    type File = File;

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.path.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create(&mut self, name: &str) -> io::Result<File> {
        // Reasons and user names are not everybody's business. A file left behind keeps its mode, so it goes first.
        self.remove(name)?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path.join(name))
    }

    fn sync(&mut self, file: &mut File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Run-time changes on disk.
pub struct Store<D = Directory> {
    disk: D,
    /// The document, for messages.
    path: PathBuf,
    /// What the document holds; `None`: not known, after a failure half-way.
    stored: Option<String>,
}

/// A document that is written and synced beside the one in force.
#[must_use = "it counts after `commit` only"]
pub struct Prepared(String);

impl Store {
    /// The store in the directory `node.state`, which is made if need be.
    ///
    /// # Errors
    /// When there can be no such directory, or another daemon has it.
    pub fn open(state: &Path) -> Result<Self> {
        let unusable = || {
            format!(
                "node.state = {}: run-time changes cannot be kept there; set it to a writable directory",
                state.display()
            )
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(state)
            .with_context(unusable)?;
        let handle = File::open(state).with_context(unusable)?;
        let handle = claim::exclusive(handle).map_err(|errno| match errno {
            Errno::EWOULDBLOCK => anyhow!(
                "another sluice uses the state directory {}: stop it, or set node.state to another directory",
                state.display()
            ),
            other => anyhow!("{}: {other}", unusable()),
        })?;
        let disk = Directory {
            path: state.to_owned(),
            handle,
        };
        Ok(Self::over(disk, state.join(NAME)))
    }
}

impl<D: Disk> Store<D> {
    /// A store over a disk; `path` is what messages call the document.
    pub const fn over(disk: D, path: PathBuf) -> Self {
        Self {
            disk,
            path,
            stored: None,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was kept; nothing, if nothing ever was. A write that an earlier daemon did not finish is swept away.
    ///
    /// # Errors
    /// When there is a document and it is not one of ours: drains in it must not be lost silently.
    pub fn load(&mut self) -> Result<Overlay> {
        if let Err(error) = self.disk.remove(TEMPORARY) {
            tracing::warn!(
                "{}: an unfinished write stays beside it: {error}",
                self.path.display()
            );
        }
        let bytes = self
            .disk
            .read(NAME)
            .map_err(|error| self.unreadable(&error, "See to that"))?;
        let Some(bytes) = bytes else {
            self.stored = Some(Overlay::default().to_document());
            return Ok(Overlay::default());
        };
        let text = String::from_utf8(bytes).map_err(|error| {
            let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line_start = before
                .iter()
                .rposition(|b| *b == b'\n')
                .map_or(0, |at| at + 1);
            let place = DocumentError::Syntax {
                line: before.iter().filter(|b| **b == b'\n').count() + 1,
                column: before.len() - line_start + 1,
                what: "not UTF-8".to_owned(),
            };
            self.unreadable(&place, "Mend it")
        })?;
        let overlay = Overlay::from_document(&text).map_err(|error| {
            let mend = match error {
                DocumentError::Format(_) => "Run the version that wrote it",
                _ => "Mend it",
            };
            self.unreadable(&error, mend)
        })?;
        self.stored = Some(text);
        Ok(overlay)
    }

    fn unreadable(&self, error: &dyn std::fmt::Display, mend: &str) -> anyhow::Error {
        let path = self.path.display();
        anyhow!(
            "{path}: {error}\nRun-time changes (drains among them) are kept there and would be lost, so nothing is started. \
             {mend}, or go on without them: `mv {path} {path}.bad`"
        )
    }

    /// Writes `overlay` beside the document in force, which stays so. `None`: the document says this already.
    ///
    /// # Errors
    /// No room, no permission, a broken disk: nearly everything that can go wrong does so here, before anything has changed.
    pub fn prepare(&mut self, overlay: &Overlay) -> Result<Option<Prepared>> {
        let text = overlay.to_document();
        if self.stored.as_ref() == Some(&text) {
            return Ok(None);
        }
        match self.write(&text) {
            Ok(()) => Ok(Some(Prepared(text))),
            Err(error) => {
                // Half a file is of no use, and of no harm: `load` sweeps it away, `create` replaces it.
                let _ = self.disk.remove(TEMPORARY);
                Err(self.unwritable(error))
            }
        }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        let mut file = self.disk.create(TEMPORARY)?;
        file.write_all(text.as_bytes())?;
        self.disk.sync(&mut file)
    }

    /// Puts what was prepared in force, for good.
    ///
    /// # Errors
    /// When that failed; which of the two documents the disk has is then not known, until one is written again.
    pub fn commit(&mut self, prepared: Prepared) -> Result<()> {
        self.stored = None;
        let result = self
            .disk
            .rename(TEMPORARY, NAME)
            .and_then(|()| self.disk.sync_directory());
        match result {
            Ok(()) => {
                self.stored = Some(prepared.0);
                Ok(())
            }
            Err(error) => Err(self.unwritable(error)),
        }
    }

    /// Gives up what was prepared.
    pub fn discard(&mut self, _prepared: Prepared) {
        // As with half a file.
        let _ = self.disk.remove(TEMPORARY);
    }

    /// Both steps at once.
    ///
    /// # Errors
    /// As of the steps.
    pub fn save(&mut self, overlay: &Overlay) -> Result<()> {
        match self.prepare(overlay)? {
            Some(prepared) => self.commit(prepared),
            None => Ok(()),
        }
    }

    /// Keeps the document as it is under another name, before entries of it are dropped. Returns where.
    ///
    /// # Errors
    /// As [`Store::prepare`].
    pub fn keep_former(&mut self) -> Result<PathBuf> {
        let former = self.path.with_file_name(FORMER);
        if let Some(text) = self.stored.clone() {
            self.write(&text)
                .and_then(|()| self.disk.rename(TEMPORARY, FORMER))
                .and_then(|()| self.disk.sync_directory())
                .map_err(|error| self.unwritable(error))?;
        }
        Ok(former)
    }

    fn unwritable(&self, error: io::Error) -> anyhow::Error {
        anyhow::Error::new(error).context(format!(
            "{}: run-time changes must be there before they hold, and it cannot be written; nothing was changed: \
             see to the room and permissions of that directory, then try again",
            self.path.display()
        ))
    }
}
