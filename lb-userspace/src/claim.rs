//! Directories that one daemon has for itself: `node.pin`, `node.state`.
//!
//! Owns: taking such a directory, and how long one waits for whoever has it. Does not own: what is in it, nor what a refusal says.

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// A daemon that was killed has its locks until the kernel has taken it apart, some time after `kill` has returned. Who starts the
/// next one at once shall not be told that another is running.
const PATIENCE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(20);

/// Takes an open directory for this process alone, until the lock is dropped.
///
/// # Errors
/// `EWOULDBLOCK` when another process has it, and keeps it.
pub fn exclusive(directory: File) -> Result<Flock<File>, Errno> {
    exclusive_within(directory, PATIENCE)
}

fn exclusive_within(mut directory: File, patience: Duration) -> Result<Flock<File>, Errno> {
    let end = Instant::now() + patience;
    loop {
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK)) if Instant::now() < end => directory = file,
            Err((_, errno)) => return Err(errno),
        }
        thread::sleep(AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(directory: &tempfile::TempDir) -> File {
        File::open(directory.path()).expect("the directory opens")
    }

    #[test]
    fn who_is_about_to_go_is_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let held = exclusive(open(&directory)).expect("nobody has it");
        let dying = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            drop(held);
        });
        assert!(exclusive_within(open(&directory), Duration::from_secs(30)).is_ok());
        dying.join().expect("no panic");
    }

    #[test]
    fn who_stays_is_not_waited_for_for_ever() {
        let directory = tempfile::tempdir().expect("a directory");
        let held = exclusive(open(&directory)).expect("nobody has it");
        let refused = exclusive_within(open(&directory), Duration::from_millis(100));
        assert_eq!(refused.err(), Some(Errno::EWOULDBLOCK));
        drop(held);
    }
}
