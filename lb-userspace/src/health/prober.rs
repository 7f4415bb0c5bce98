//! Probes a set of targets, each on its own schedule, and reports the flips.
//!
//! Owns: schedules, the bound on probes in flight, what is known of each target. Does not own: the wire (`probe`),
//! the rules (`fsm`), or which targets there should be.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::fsm::Fsm;
use super::probe::{self, ProbeFailure};
use super::{HealthEvent, ProbeStatistics, ProbeTarget};
use crate::model::{Health, ProbeKind};

/// First probes are spread over this (or the interval, when shorter): verdicts at start come soon, but not all in
/// one burst.
const FIRST_SPREAD: Duration = Duration::from_millis(200);
/// Intervals are shortened by up to this share at random, so that targets do not fall into step. They are never
/// lengthened: the time to fail over (see [`Fsm::pause`]) is a promise.
const JITTER: f64 = 0.1;
/// Bounds of the number of probes in flight. Each takes a file descriptor, so the limit of open files decides
/// between them. When more targets hang at once than may be in flight, the rest wait for their turn and the time to
/// fail over grows accordingly: raise the limit of open files for thousands of backends.
const IN_FLIGHT: std::ops::RangeInclusive<usize> = 64..=4_096;

/// Makes probers.
pub struct Prober;

impl Prober {
    /// Starts a prober without targets. Must be called within a tokio runtime.
    pub fn spawn(events: mpsc::Sender<HealthEvent>) -> ProberHandle {
        ProberHandle {
            runtime: Handle::current(),
            shared: Arc::new(Shared {
                events,
                in_flight: Semaphore::new(probes_in_flight()),
            }),
            watched: Mutex::new(HashMap::new()),
        }
    }
}

/// Half of the files this process may open, within [`IN_FLIGHT`]: the other half is for everything else.
fn probes_in_flight() -> usize {
    let (soft, _hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .unwrap_or((1_024, 1_024));
    usize::try_from(soft / 2)
        .unwrap_or(usize::MAX)
        .clamp(*IN_FLIGHT.start(), *IN_FLIGHT.end())
}

/// A running prober. Dropping it stops every probe.
pub struct ProberHandle {
    runtime: Handle,
    shared: Arc<Shared>,
    watched: Mutex<HashMap<ProbeTarget, Watched>>,
}

struct Shared {
    events: mpsc::Sender<HealthEvent>,
    in_flight: Semaphore,
}

struct Watched {
    record: Arc<Mutex<Record>>,
    /// Dropping it ends the target's probes.
    _task: AbortOnDropHandle<()>,
}

/// What is known of one target.
struct Record {
    fsm: Fsm,
    /// The health is somebody else's word; no probe of ours has confirmed it.
    presumed: bool,
    /// What the last probe said.
    said: String,
    /// When the health last flipped; before the first verdict: since when the target is watched.
    since: Instant,
    statistics: ProbeStatistics,
}

impl ProberHandle {
    /// Replaces the set of targets: new ones are probed at once, vanished ones no more, kept ones go on untouched.
    ///
    /// An event of a target that has just vanished may still be in the channel.
    pub fn watch(&self, targets: HashSet<ProbeTarget>) {
        self.watch_from(targets.into_iter().map(|target| (target, None)));
    }

    /// As [`ProberHandle::watch`], with what is known of the backends behind a target: its health and what the probe said.
    /// A new target starts there, and rise and fall count from there, so that a reload that changes a probe's settings does
    /// not let one slow answer take a healthy backend out. Where nothing is known the first result decides.
    pub fn watch_from(
        &self,
        targets: impl IntoIterator<Item = (ProbeTarget, Option<(Health, String)>)>,
    ) {
        let targets: HashMap<_, _> = targets.into_iter().collect();
        let mut watched = lock(&self.watched);
        watched.retain(|target, _| targets.contains_key(target));
        for (target, known) in targets {
            watched
                .entry(target)
                .or_insert_with_key(|target| self.start(target, known));
        }
    }

    fn start(&self, target: &ProbeTarget, known: Option<(Health, String)>) -> Watched {
        let (health, said) = known
            // What is no longer probed counts as up, whatever its probes said.
            .filter(|_| target.kind != ProbeKind::None)
            .unwrap_or_else(|| (Health::Unknown, "not probed yet".into()));
        let record = Arc::new(Mutex::new(Record {
            fsm: Fsm::starting_from(target.rise, target.fall, health),
            presumed: health != Health::Unknown,
            said,
            since: Instant::now(),
            statistics: ProbeStatistics::new(target.clone()),
        }));
        let task = run(
            target.clone(),
            Arc::clone(&record),
            Arc::clone(&self.shared),
        );
        Watched {
            record,
            _task: AbortOnDropHandle::new(self.runtime.spawn(task)),
        }
    }

    /// Health of a watched target, what its last probe said, and when the health last flipped.
    pub fn current(&self, target: &ProbeTarget) -> Option<(Health, String, Instant)> {
        let watched = lock(&self.watched);
        let record = lock(&watched.get(target)?.record);
        Some((record.fsm.health(), record.said.clone(), record.since))
    }

    /// Counts of every watched target, in no particular order.
    pub fn statistics(&self) -> Vec<ProbeStatistics> {
        lock(&self.watched)
            .values()
            .map(|watched| lock(&watched.record).statistics.clone())
            .collect()
    }
}

/// What these locks guard is whole between statements, so a panic elsewhere leaves it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Probes one target until its task is dropped or nobody listens any more.
async fn run(target: ProbeTarget, record: Arc<Mutex<Record>>, shared: Arc<Shared>) {
    if target.kind == ProbeKind::None {
        let said = "not probed".to_owned();
        let flip = settle(&record, true, said);
        report(&target, flip, &shared).await;
        return;
    }
    let mut next = tokio::time::Instant::now() + random_up_to(FIRST_SPREAD.min(target.interval));
    loop {
        tokio::time::sleep_until(next).await;
        // The permit first, the clock second: a probe that waited for its turn is no slower for it.
        let Ok(permit) = shared.in_flight.acquire().await else {
            return;
        };
        let started = tokio::time::Instant::now();
        let outcome = probe::once(&target).await;
        let took = started.elapsed();
        drop(permit);

        let flip = match outcome {
            Ok(latency) => {
                lock(&record).statistics.count(true, took);
                let milliseconds = latency.as_secs_f64() * 1_000.0;
                settle(&record, true, format!("answered in {milliseconds:.1} ms"))
            }
            Err(ProbeFailure::Target(reason)) => {
                lock(&record).statistics.count(false, took);
                settle(&record, false, reason)
            }
            Err(ProbeFailure::Local(reason)) => {
                let mut record = lock(&record);
                // Once per cause, not once per probe.
                if record.said != reason {
                    tracing::warn!(target = %target.address, "cannot probe: {reason}");
                }
                record.said = reason;
                record.statistics.not_made += 1;
                None
            }
        };
        if !report(&target, flip, &shared).await {
            return;
        }
        let pause = lock(&record).fsm.pause(target.interval);
        // Start to start, so that slow answers do not stretch the interval. A start in the past (a timeout longer than
        // the pause) means at once.
        next = started + pause.mul_f64(1.0 - rand::rng().random_range(0.0..=JITTER));
    }
}

/// Takes a result into the record; gives the flip, if it is one. What was presumed is told once when it is confirmed: until then
/// nobody knows why a backend is down.
fn settle(record: &Mutex<Record>, success: bool, said: String) -> Option<(Health, String)> {
    let mut record = lock(record);
    let flip = record.fsm.record(success);
    record.said.clone_from(&said);
    if flip.is_some() {
        record.since = Instant::now();
    }
    let health = record.fsm.health();
    let confirmed = record.presumed && success == (health == Health::Up);
    record.presumed &= !confirmed;
    (flip.is_some() || confirmed).then_some((health, said))
}

/// Sends a flip, if there is one; gives false when nobody listens any more.
async fn report(target: &ProbeTarget, flip: Option<(Health, String)>, shared: &Shared) -> bool {
    let Some((health, reason)) = flip else {
        return true;
    };
    shared
        .events
        .send(HealthEvent {
            target: target.clone(),
            health,
            reason,
        })
        .await
        .is_ok()
}

fn random_up_to(limit: Duration) -> Duration {
    limit.mul_f64(rand::rng().random_range(0.0..=1.0))
}
