//! Keeps the next hops of a set of addresses current and reports what changes.
//!
//! Owns: when the kernel is asked, and when an answer is worth an event. Does not own: the questions (`kernel`) or
//! the reading of the answers (`decide`).
//!
//! The tables of links and neighbours are dumped at times and kept current by events in between; a route is asked
//! for per address, since only the kernel knows its rules. A *pass* then reads every watched address out of these
//! tables, without IO, so thousands of addresses cost a millisecond.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::decide::{Verdict, decide};
use super::kernel::{Change, Changes, Failure, Kernel, Link, Neighbour, NeighbourKey, Route};
use super::{NextHopEvent, NextHopState};

/// Changes come in bursts (a link brings its routes and neighbours); one pass takes them together.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// A pass that asks for every route is followed by a rest of this many times its length: a host under a storm of
/// route changes spends no more than a fifth of one CPU here.
const REST: u32 = 4;
/// Everything is asked again this often, in case an event got lost, and stale neighbours are confirmed: traffic
/// through XDP never does that for them.
const REFRESH: Duration = Duration::from_secs(30);
/// A neighbour that does not answer is asked again after this long, doubling …
const ASK_FIRST: Duration = Duration::from_millis(100);
/// … up to this, for ever.
const ASK_LAST: Duration = Duration::from_secs(5);
/// How long a next hop that is not known yet is held back: neighbours mostly answer within a millisecond, and
/// "not answered yet" is no news.
const HOLD: Duration = Duration::from_millis(500);
/// Between attempts to subscribe again after the subscription broke.
const RESUBSCRIBE: Duration = Duration::from_secs(1);

/// A running resolver. Dropping it ends it.
pub struct NextHopsHandle {
    /// A queue, not a last value: an address that goes and comes back between two looks must be reported again.
    wanted: mpsc::UnboundedSender<HashSet<IpAddr>>,
    _task: AbortOnDropHandle<()>,
}

impl NextHopsHandle {
    /// Replaces the set of addresses. Each new one is reported once, within half a second; then whatever changes.
    pub fn watch(&self, addresses: HashSet<IpAddr>) {
        // It ends with this handle, so it is there.
        let _ = self.wanted.send(addresses);
    }
}

/// Starts a resolver in the network namespace of the calling thread.
pub async fn spawn(events: mpsc::Sender<NextHopEvent>) -> anyhow::Result<NextHopsHandle> {
    spawn_refreshing_every(events, REFRESH).await
}

/// As [`spawn`], asking for everything again at another pace than every 30 seconds.
pub async fn spawn_refreshing_every(
    events: mpsc::Sender<NextHopEvent>,
    refresh: Duration,
) -> anyhow::Result<NextHopsHandle> {
    // Subscribed before the first dump: nothing falls between them.
    let changes = Changes::subscribe()?;
    let kernel = Kernel::open()?;
    let (wanted, updates) = mpsc::unbounded_channel();
    let mut resolver = Resolver::new(kernel, events, refresh);
    resolver.load_tables().await?;
    let task = AbortOnDropHandle::new(tokio::spawn(resolver.run(changes, updates)));
    Ok(NextHopsHandle {
        wanted,
        _task: task,
    })
}

/// Resolves a set of addresses once; those that are not resolved when `patience` ends say why.
pub async fn resolve_within(
    addresses: HashSet<IpAddr>,
    patience: Duration,
) -> anyhow::Result<HashMap<IpAddr, NextHopState>> {
    let deadline = Instant::now() + patience;
    let (sender, mut events) = mpsc::channel(64);
    let handle = spawn(sender).await?;
    let mut states = HashMap::new();
    let mut missing = addresses.clone();
    handle.watch(addresses);
    while !missing.is_empty() {
        let Ok(Some(event)) = tokio::time::timeout_at(deadline, events.recv()).await else {
            break;
        };
        if matches!(event.state, NextHopState::Resolved(_)) {
            missing.remove(&event.address);
        }
        states.insert(event.address, event.state);
    }
    for address in missing {
        states.entry(address).or_insert_with(|| {
            let seconds = patience.as_secs();
            NextHopState::Unresolved(format!(
                "the way to {address} was not known after {seconds}s"
            ))
        });
    }
    Ok(states)
}

/// What is known of one watched address.
#[derive(Default)]
struct Watched {
    /// `None`: not asked yet.
    route: Option<Route>,
    /// The last state an event told of.
    reported: Option<NextHopState>,
    /// The neighbour of the last next hop that was known.
    through: Option<NeighbourKey>,
    /// Since when its MAC is asked for, without a verdict.
    asking_since: Option<Instant>,
    /// The neighbour whose silence has been reported.
    silent: Option<NeighbourKey>,
}

/// The asking of one neighbour, whatever the number of addresses behind it.
struct Ask {
    due: Instant,
    pause: Duration,
}

struct Resolver {
    kernel: Kernel,
    events: mpsc::Sender<NextHopEvent>,
    links: HashMap<u32, Link>,
    neighbours: HashMap<NeighbourKey, Neighbour>,
    watched: HashMap<IpAddr, Watched>,
    asks: HashMap<NeighbourKey, Ask>,
    /// Neighbours that watched addresses need: events of others are of no interest.
    needed: HashSet<NeighbourKey>,
    /// Routes are to be asked for again, all of them.
    reroute: bool,
    /// Tables are to be dumped again.
    reload: bool,
    refresh_every: Duration,
    /// When stale neighbours are confirmed and everything is asked again.
    refresh: Instant,
    /// No pass over all routes before this.
    rested: Instant,
}

impl Resolver {
    fn new(kernel: Kernel, events: mpsc::Sender<NextHopEvent>, refresh_every: Duration) -> Self {
        let now = Instant::now();
        Self {
            kernel,
            events,
            links: HashMap::new(),
            neighbours: HashMap::new(),
            watched: HashMap::new(),
            asks: HashMap::new(),
            needed: HashSet::new(),
            reroute: false,
            reload: false,
            refresh_every,
            refresh: now + refresh_every,
            rested: now,
        }
    }

    async fn run(
        mut self,
        changes: Changes,
        mut updates: mpsc::UnboundedReceiver<HashSet<IpAddr>>,
    ) {
        let mut changes = Some(changes);
        let mut pass = self.refresh;
        loop {
            tokio::select! {
                update = updates.recv() => {
                    let Some(wanted) = update else { return };
                    self.watched.retain(|address, _| wanted.contains(address));
                    for address in wanted {
                        self.watched.entry(address).or_default();
                    }
                    pass = Instant::now();
                }
                change = next_change(&mut changes) => {
                    if self.apply(change) {
                        pass = pass.min(Instant::now() + DEBOUNCE);
                    }
                }
                () = tokio::time::sleep_until(pass) => {
                    match self.pass().await {
                        Some(next) => pass = next,
                        None => return,
                    }
                }
            }
        }
    }

    /// Takes a change into the tables; gives whether a watched address may be concerned.
    fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Neighbour(key, Some(new)) => {
                insert_neighbour(&mut self.neighbours, key, new);
                self.needed.contains(&key)
            }
            Change::Neighbour(key, None) => {
                self.neighbours.remove(&key);
                self.needed.contains(&key)
            }
            Change::Link(ifindex, Some(mut new)) => {
                // Whether it transmits XDP frames is not in the event: what was told stands until the next dump, and a
                // link that is new needs one.
                match self.links.get(&ifindex) {
                    Some(old) => new.xdp_transmit = old.xdp_transmit,
                    None => self.reload = true,
                }
                if self.links.get(&ifindex) == Some(&new) {
                    return false;
                }
                self.links.insert(ifindex, new);
                self.reroute = true;
                true
            }
            Change::Link(ifindex, None) => {
                self.links.remove(&ifindex);
                self.neighbours.retain(|key, _| key.ifindex != ifindex);
                self.reroute = true;
                true
            }
            Change::Routes => {
                self.reroute = true;
                true
            }
            Change::Overrun => {
                tracing::warn!(
                    "netlink events were lost (net.core.rmem_max is small); asking for everything again"
                );
                self.reroute = true;
                self.reload = true;
                true
            }
        }
    }

    /// Asks what is to be asked, reads every address, reports what changed. Gives when the next pass is due, or
    /// `None` when nobody listens any more.
    async fn pass(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let refreshing = now >= self.refresh;
        if refreshing {
            self.refresh = now + self.refresh_every;
            self.reroute = true;
            self.reload = true;
        }
        if self.reload {
            match self.load_tables().await {
                Ok(()) => self.reload = false,
                Err(error) => {
                    tracing::warn!("keeping what is known of links and neighbours: {error:#}")
                }
            }
        }
        self.load_routes().await;
        let mut solicit = Vec::new();
        let (changed, hold_ends) = self.read_all(refreshing, &mut solicit);
        // Asked first, reported second: the asking must not wait for whoever takes the events.
        let asked = self.ask(solicit).await;
        for event in changed {
            self.events.send(event).await.ok()?;
        }
        let rested = self.reroute.then_some(self.rested);
        let due = [Some(self.refresh), hold_ends, asked, rested]
            .into_iter()
            .flatten()
            .min();
        // A pass that is due already waits a little all the same: no state may make this loop spin.
        Some(due.unwrap_or(self.refresh).max(Instant::now() + DEBOUNCE))
    }

    async fn load_tables(&mut self) -> anyhow::Result<()> {
        let links = self.kernel.links().await?;
        let neighbours = self.kernel.neighbours().await?;
        self.links = links;
        let mut old = std::mem::take(&mut self.neighbours);
        for (key, new) in neighbours {
            // Moved over first, so that what is remembered of a neighbour outlives the dump.
            if let Some(old) = old.remove(&key) {
                self.neighbours.insert(key, old);
            }
            insert_neighbour(&mut self.neighbours, key, new);
        }
        Ok(())
    }

    /// Asks for the routes that are not known, or for all of them when they may have changed.
    async fn load_routes(&mut self) {
        let started = Instant::now();
        let all = self.reroute && started >= self.rested;
        for (&address, watched) in &mut self.watched {
            if !all && watched.route.is_some() {
                continue;
            }
            match self.kernel.route(address).await {
                Ok(route) => watched.route = Some(route),
                // What was known stays; the next refresh asks again.
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
        if all {
            self.reroute = false;
            self.rested = Instant::now() + started.elapsed() * REST;
        }
    }

    /// Reads every address out of the tables. Gives the events and when the first held one is due; fills `solicit`
    /// with the neighbours to ask, each with whether it is merely to be confirmed.
    fn read_all(
        &mut self,
        refreshing: bool,
        solicit: &mut Vec<(NeighbourKey, bool)>,
    ) -> (Vec<NextHopEvent>, Option<Instant>) {
        let now = Instant::now();
        let mut events = Vec::new();
        let mut hold_ends: Option<Instant> = None;
        self.needed.clear();
        for (&address, watched) in &mut self.watched {
            let Some(route) = &watched.route else {
                continue;
            };
            let last = watched.through.map(|key| key.ifindex);
            let state = match decide(address, route, &self.links, &self.neighbours, last) {
                Verdict::Known {
                    next_hop,
                    neighbour,
                    stale,
                } => {
                    if self.needed.insert(neighbour) && stale && refreshing {
                        solicit.push((neighbour, true));
                    }
                    watched.through = Some(neighbour);
                    watched.asking_since = None;
                    watched.silent = None;
                    NextHopState::Resolved(next_hop)
                }
                Verdict::Asking {
                    neighbour,
                    failed,
                    words,
                } => {
                    if self.needed.insert(neighbour) {
                        solicit.push((neighbour, false));
                    }
                    let since = *watched.asking_since.get_or_insert(now);
                    let was_known = matches!(watched.reported, Some(NextHopState::Resolved(_)));
                    // An entry that was collected as garbage, or that is being asked for anew, was right a moment
                    // ago and most likely is still: the last known MAC stands until the kernel says FAILED.
                    if !failed && was_known && watched.through == Some(neighbour) {
                        continue;
                    }
                    // Elsewhere (first time, or another neighbour after a change of route) an answer is due in no
                    // time, and until then the old state is as good as none.
                    if !failed && (was_known || watched.reported.is_none()) && now < since + HOLD {
                        hold_ends =
                            Some(hold_ends.map_or(since + HOLD, |ends| ends.min(since + HOLD)));
                        continue;
                    }
                    // The kernel forgets failed entries after a while; that alone is no news either.
                    if !failed && watched.silent == Some(neighbour) {
                        continue;
                    }
                    watched.silent = Some(neighbour);
                    NextHopState::Unresolved(words)
                }
                Verdict::Impossible(words) => {
                    watched.asking_since = None;
                    watched.silent = None;
                    NextHopState::Unresolved(words)
                }
            };
            if watched.reported.as_ref() != Some(&state) {
                watched.reported = Some(state.clone());
                events.push(NextHopEvent { address, state });
            }
        }
        (events, hold_ends)
    }

    /// Asks those neighbours whose turn it is; gives when the next turn is.
    async fn ask(&mut self, wanted: Vec<(NeighbourKey, bool)>) -> Option<Instant> {
        let keys: HashSet<_> = wanted.iter().map(|(key, _)| *key).collect();
        self.asks.retain(|key, _| keys.contains(key));
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for (key, confirm_only) in wanted {
            if confirm_only {
                self.solicit(key).await;
                continue;
            }
            let ask = self.asks.entry(key).or_insert(Ask {
                due: now,
                pause: ASK_FIRST,
            });
            let due_now = ask.due <= now;
            if due_now {
                ask.due = now + ask.pause;
                ask.pause = (ask.pause * 2).min(ASK_LAST);
            }
            next = Some(next.map_or(ask.due, |earliest| earliest.min(ask.due)));
            if due_now {
                self.solicit(key).await;
            }
        }
        next
    }

    async fn solicit(&self, key: NeighbourKey) {
        let Err(failure) = self.kernel.solicit(key).await else {
            return;
        };
        let NeighbourKey { ifindex, address } = key;
        match failure {
            Failure::Kernel(libc::ENOBUFS) => tracing::warn!(
                "the neighbour table is full, {address} cannot be resolved: raise net.ipv4.neigh.default.gc_thresh3 \
                 (or net.ipv6.…)"
            ),
            // Its link went away in between: an event says so, or has said so already.
            Failure::Kernel(libc::ENODEV | libc::ENETDOWN) => {}
            failure => {
                tracing::debug!("cannot ask for {address} on interface {ifindex}: {failure}")
            }
        }
    }
}

/// Takes in an entry, remembering that it failed until it is valid again: between two failures the kernel shows it
/// as merely incomplete, which is not better news.
fn insert_neighbour(
    table: &mut HashMap<NeighbourKey, Neighbour>,
    key: NeighbourKey,
    new: Neighbour,
) {
    // Not `new.failed |= …`: rustc 1.95 and 1.96 miscompile that here when they optimise (the family of rust-lang/rust#150904).
    let failed = match table.get(&key) {
        Some(old) => new.failed || (old.failed && new.mac.is_none()),
        None => new.failed,
    };
    table.insert(key, Neighbour { failed, ..new });
}

/// The next change; subscribes again when the subscription broke.
async fn next_change(changes: &mut Option<Changes>) -> Change {
    loop {
        match changes {
            Some(open) => match open.next().await {
                Some(change) => return change,
                None => {
                    tracing::warn!("the subscription to netlink events broke; subscribing again");
                    *changes = None;
                }
            },
            None => {
                tokio::time::sleep(RESUBSCRIBE).await;
                match Changes::subscribe() {
                    Ok(open) => {
                        *changes = Some(open);
                        // Whatever happened meanwhile went unseen.
                        return Change::Overrun;
                    }
                    Err(error) => tracing::warn!("{error:#}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_remembered_until_the_neighbour_is_valid() {
        let key = NeighbourKey {
            ifindex: 1,
            address: "10.0.0.1".parse().unwrap(),
        };
        let mut table = HashMap::new();
        let incomplete = Neighbour {
            mac: None,
            failed: false,
            stale: false,
        };
        let mut after = |new| {
            insert_neighbour(&mut table, key, new);
            table[&key].failed
        };
        assert!(!after(incomplete));
        assert!(after(Neighbour {
            failed: true,
            ..incomplete
        }));
        assert!(after(incomplete), "asking again is no success");
        assert!(!after(Neighbour {
            mac: Some([0; 6]),
            ..incomplete
        }));
        assert!(!after(incomplete));
    }
}
