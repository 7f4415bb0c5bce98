//! The store of run-time changes on disks that die: whatever is lost, what is read again is wholly old or wholly new.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::rc::Rc;

use lb_userspace::config;
use lb_userspace::daemon::store::{Disk, NAME, Store};
use lb_userspace::model::Admin;
use lb_userspace::state::{AdminRecord, Overlay, Stamp, State};

const FILE: &str = r#"
[node]
interfaces = ["eth0"]
[[service]]
name = "web"
vip = "203.0.113.10:80"
  [[service.backend]]
  address = "10.0.0.11"
"#;

/// An overlay of one drain with this reason.
fn drained(reason: &str) -> Overlay {
    let config = config::parse(FILE, "sluice.toml").unwrap();
    let mut state = State::new(&config);
    let record = AdminRecord {
        admin: Admin::Draining,
        reason: Some(reason.to_owned()),
        by: Some("ada".to_owned()),
        at: Some(1_760_000_000),
        until: None,
    };
    let changed = state.change(|overlay, _, services| {
        let address = "10.0.0.11".parse().unwrap();
        overlay.set_admin(&services[0], address, record);
        overlay.set_weight(&services[0], address, 5, Stamp::default());
        Ok(())
    });
    assert!(changed.unwrap());
    state.overlay().clone()
}

fn open(directory: &Path) -> Store {
    Store::open(directory).unwrap()
}

fn load(directory: &Path) -> Overlay {
    open(directory).load().unwrap()
}

// A real directory.

#[test]
fn what_is_saved_is_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("var/state");
    assert!(load(&state).is_empty());
    let path = state.join(NAME);
    assert!(!path.exists(), "written without a change");
    let mut store = open(&state);
    store.load().unwrap();
    store.save(&drained("disk")).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    // Written only when something changed.
    fs::remove_file(&path).unwrap();
    store.save(&drained("disk")).unwrap();
    assert!(!path.exists());
    store.save(&drained("fan")).unwrap();
    drop(store);
    assert_eq!(load(&state), drained("fan"));
    let names: Vec<_> = fs::read_dir(&state).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

/// SIGKILL while the temporary file is written: whatever its length, it counts for nothing.
#[test]
fn a_write_cut_at_any_byte_leaves_the_old_overlay() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    open(state).save(&drained("old")).unwrap();
    let new = drained("new").to_document();
    let temporary = state.join("overlay.json.new");
    for length in 0..=new.len() {
        fs::write(&temporary, &new.as_bytes()[..length]).unwrap();
        assert_eq!(load(state), drained("old"), "cut at {length}");
        assert!(!temporary.exists(), "swept away");
    }
    let mut store = open(state);
    let prepared = store.prepare(&drained("new")).unwrap().unwrap();
    assert_eq!(fs::read_to_string(&temporary).unwrap(), new);
    store.commit(prepared).unwrap();
    drop(store);
    assert_eq!(load(state), drained("new"));
}

#[test]
fn a_document_that_is_not_ours_is_refused_and_stays() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(NAME);
    let good = drained("disk").to_document();
    let cases: [(Vec<u8>, &str); 5] = [
        (Vec::new(), "line 1, column 0"),
        (good.as_bytes()[..40].to_vec(), "line 3, column"),
        (
            good.replace("\"format\": 1", "\"format\": 7").into(),
            "format 7",
        ),
        (
            b"{\n  \"format\": 1, \xff".to_vec(),
            "line 2, column 16: not UTF-8",
        ),
        (
            good.replace("draining", "asleep").into(),
            "unknown variant `asleep`",
        ),
    ];
    for (bytes, says) in cases {
        fs::write(&path, &bytes).unwrap();
        let error = format!("{:#}", open(directory.path()).load().unwrap_err());
        let shown = path.display();
        for part in [says, &format!("mv {shown} {shown}.bad")] {
            assert!(error.contains(part), "{part} not in {error}");
        }
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    // Not even a file.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let error = format!("{:#}", open(directory.path()).load().unwrap_err());
    assert!(error.contains("overlay.json.bad"), "{error}");
    // The way out works.
    fs::rename(&path, path.with_extension("json.bad")).unwrap();
    assert!(load(directory.path()).is_empty());
}

#[test]
fn a_directory_has_one_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path());
    let error = Store::open(directory.path()).err().unwrap().to_string();
    assert!(error.contains("another sluice"), "{error}");
    assert!(error.contains("node.state"), "{error}");
    drop(first);
    open(directory.path());
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Store::open(&file.join("state")).err().unwrap().to_string();
    assert!(error.contains("writable directory"), "{error}");
}

#[test]
fn what_cannot_be_written_is_refused_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path());
    store.save(&drained("old")).unwrap();
    // Something in the way that even root cannot write over.
    fs::create_dir_all(directory.path().join("overlay.json.new/x")).unwrap();
    let error = format!("{:#}", store.save(&drained("new")).unwrap_err());
    let path = directory.path().join(NAME).display().to_string();
    for part in [path.as_str(), "nothing was changed", "try again"] {
        assert!(error.contains(part), "{part} not in {error}");
    }
    drop(store);
    assert_eq!(load(directory.path()), drained("old"));
    fs::remove_dir_all(directory.path().join("overlay.json.new")).unwrap();
    open(directory.path()).save(&drained("new")).unwrap();
    assert_eq!(load(directory.path()), drained("new"));
}

// A disk that loses what was not synced.

/// Bytes as the page cache has them, and how many are surely on the disk.
#[derive(Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    synced: usize,
}

/// Which content a name leads to: an inode.
type Names = BTreeMap<String, usize>;

#[derive(Clone, Default)]
struct Machine {
    contents: Vec<Content>,
    /// As running processes see it.
    names: Names,
    /// As they may be found after a power cut: the synced ones first, then after each further change.
    on_disk: Vec<Names>,
    /// Steps until it dies; each byte is one.
    left: usize,
    /// A disk without `fsync`, to show that the test sees it.
    lazy: bool,
}

impl Machine {
    fn step(&mut self) -> io::Result<()> {
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| io::Error::other("dead"))?;
        Ok(())
    }

    fn renamed(&mut self) {
        self.on_disk.push(self.names.clone());
    }

    /// Every state a power cut may leave behind: any of the sets of names, unsynced bytes there, gone, or half there.
    fn after_power_cut(&self) -> Vec<Machine> {
        let mut found = Vec::new();
        for names in &self.on_disk {
            for quarters in 0..=4 {
                let mut after = self.clone();
                for content in &mut after.contents {
                    let unsynced = content.bytes.len() - content.synced;
                    content
                        .bytes
                        .truncate(content.synced + unsynced * quarters / 4);
                }
                after.names = names.clone();
                after.on_disk = vec![names.clone()];
                after.left = usize::MAX;
                found.push(after);
            }
        }
        found
    }

    /// The process dies, the machine does not.
    fn after_kill(&self) -> Machine {
        Machine {
            left: usize::MAX,
            ..self.clone()
        }
    }
}

#[derive(Clone)]
struct Model(Rc<RefCell<Machine>>);

struct Open(Model, usize);

impl Write for Open {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut machine = self.0.0.borrow_mut();
        machine.step()?;
        machine.contents[self.1].bytes.push(bytes[0]);
        Ok(1)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Disk for Model {
    type File = Open;

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let machine = self.0.borrow();
        let content = machine.names.get(name).map(|&n| &machine.contents[n]);
        Ok(content.map(|content| content.bytes.clone()))
    }

    fn create(&mut self, name: &str) -> io::Result<Open> {
        let mut machine = self.0.borrow_mut();
        machine.step()?;
        machine.contents.push(Content::default());
        let number = machine.contents.len() - 1;
        machine.names.insert(name.to_owned(), number);
        machine.renamed();
        drop(machine);
        Ok(Open(self.clone(), number))
    }

    fn sync(&mut self, file: &mut Open) -> io::Result<()> {
        let mut machine = self.0.borrow_mut();
        machine.step()?;
        if !machine.lazy {
            let content = &mut machine.contents[file.1];
            content.synced = content.bytes.len();
        }
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut machine = self.0.borrow_mut();
        machine.step()?;
        let number = machine.names.remove(from).expect("the file is there");
        machine.names.insert(to.to_owned(), number);
        machine.renamed();
        Ok(())
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        let mut machine = self.0.borrow_mut();
        machine.step()?;
        if !machine.lazy {
            machine.on_disk = vec![machine.names.clone()];
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut machine = self.0.borrow_mut();
        machine.step()?;
        if machine.names.remove(name).is_some() {
            machine.renamed();
        }
        Ok(())
    }
}

fn store(machine: Machine) -> (Model, Store<Model>) {
    let model = Model(Rc::new(RefCell::new(machine)));
    (model.clone(), Store::over(model, NAME.into()))
}

/// What a store does before it dies at each step; returns (what the machine is then, whether the change was confirmed).
fn deaths(
    lazy: bool,
    work: impl Fn(&mut Store<Model>) -> anyhow::Result<()>,
) -> Vec<(Machine, bool)> {
    let healthy = Machine {
        on_disk: vec![Names::new()],
        left: usize::MAX,
        ..Machine::default()
    };
    let (model, mut first) = store(healthy);
    first.save(&drained("old")).unwrap();
    let mut before = model.0.borrow().clone();
    before.lazy = lazy;
    let mut all = Vec::new();
    for left in 0.. {
        before.left = left;
        let (model, mut store) = store(before.clone());
        let confirmed = store.load().is_ok() && work(&mut store).is_ok();
        all.push((model.0.borrow().clone(), confirmed));
        if confirmed {
            break;
        }
    }
    all
}

/// What is found after each death, against what may be.
fn verdicts(deaths: &[(Machine, bool)]) -> Vec<Result<bool, String>> {
    let mut verdicts = Vec::new();
    for (machine, confirmed) in deaths {
        let mut outcomes = machine.after_power_cut();
        outcomes.push(machine.after_kill());
        for outcome in outcomes {
            let (_, mut store) = store(outcome);
            verdicts.push(match store.load() {
                Ok(overlay) if overlay == drained("new") => Ok(true),
                Ok(overlay) if overlay == drained("old") && !confirmed => Ok(false),
                Ok(overlay) => Err(format!("confirmed: {confirmed}, found {overlay:?}")),
                Err(error) => Err(format!("{error:#}")),
            });
        }
    }
    verdicts
}

#[test]
fn a_death_at_any_step_leaves_the_old_or_the_new_overlay() {
    let deaths = deaths(false, |store| store.save(&drained("new")));
    assert!(deaths.len() > drained("new").to_document().len());
    let verdicts = verdicts(&deaths);
    for verdict in &verdicts {
        verdict.as_ref().unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(verdicts.contains(&Ok(true)) && verdicts.contains(&Ok(false)));
}

/// The test above can fail: without syncing, a power cut leaves neither.
#[test]
fn without_syncing_it_would_not() {
    let deaths = deaths(true, |store| store.save(&drained("new")));
    assert!(verdicts(&deaths).iter().any(Result::is_err));
}

/// A change that was prepared and then refused by the data plane never was.
#[test]
fn what_is_discarded_leaves_the_old_overlay() {
    let deaths = deaths(false, |store| {
        let prepared = store.prepare(&drained("new"))?.expect("it differs");
        store.discard(prepared);
        anyhow::ensure!(store.prepare(&drained("old"))?.is_none(), "old is in force");
        store.save(&drained("new"))
    });
    assert!(verdicts(&deaths).iter().all(Result::is_ok));
}

/// A disk that failed at the last step, and the way back: the old overlay is written again, as nobody knows which one is there.
#[test]
fn after_a_failed_rename_the_old_one_is_written_again() {
    let (model, mut store) = store(Machine {
        on_disk: vec![Names::new()],
        left: usize::MAX,
        ..Machine::default()
    });
    store.save(&drained("old")).unwrap();
    let prepared = store.prepare(&drained("new")).unwrap().unwrap();
    // The rename succeeds, syncing the directory does not.
    model.0.borrow_mut().left = 1;
    store.commit(prepared).unwrap_err();
    model.0.borrow_mut().left = usize::MAX;
    store.save(&drained("old")).unwrap();
    for outcome in model.0.borrow().after_power_cut() {
        let (_, mut store) = self::store(outcome);
        assert_eq!(store.load().unwrap(), drained("old"));
    }
}
