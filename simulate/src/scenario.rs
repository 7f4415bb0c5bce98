//! Scenario files: what is simulated, in words a newcomer can read and change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lb_userspace::model::TableSize;
use serde::{Deserialize, Deserializer};

/// A length of time, as files write it: `"90s"`, `"5min"`, `"3h"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Span {
    pub const fn nanos(self) -> u64 {
        self.0.as_nanos() as u64
    }

    pub const fn seconds(self) -> f64 {
        self.0.as_secs_f64()
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let duration = humantime::parse_duration(&text).map_err(|error| {
            serde::de::Error::custom(format!(
                "{text:?} is no time ({error}); write \"90s\" or \"3h\""
            ))
        })?;
        Ok(Self(duration))
    }
}

/// One file of `scenarios/`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The file's name without `.toml`.
    #[serde(skip)]
    pub name: String,
    /// One line.
    pub title: String,
    /// What its numbers show.
    pub shows: String,
    pub seed: u64,
    /// Traffic before the events begin; what is remembered then is not counted.
    pub warm_up: Span,
    pub runs: Span,
    pub backends: u32,
    /// Slots of the lookup table; as the daemon would choose if absent.
    pub table_size: Option<u32>,
    /// Balancers behind a router that spreads flows by a hash modulo their number.
    #[serde(default = "one")]
    pub balancers: u32,
    /// New connections a second, of all balancers together.
    pub arrivals: f64,
    /// Name of a file in `scenarios/traffic/`.
    pub traffic: String,
    #[serde(skip)]
    pub mix: Mix,
    pub memory: Memory,
    /// How long until probes notice that a backend has failed, or answers again.
    pub probes: Probes,
    #[serde(default, rename = "event")]
    pub events: Vec<Event>,
    #[serde(default, rename = "flood")]
    pub floods: Vec<Flood>,
    #[serde(default)]
    pub expect: Expect,
}

const fn one() -> u32 {
    1
}

/// What the designs may remember.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Entries of Sluice's flow table, a power of two; and of all the LRU's parts together.
    pub entries: u32,
    /// CPUs, each of which has its own part of the LRU.
    pub cpus: u32,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probes {
    pub fall: Span,
    pub rise: Span,
}

/// What happens, `at` a time after the warm-up.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// Backends join.
    Add { at: Span, count: u32 },
    /// The youngest backends are drained, and removed after `drain`.
    Remove { at: Span, count: u32, drain: Span },
    /// One backend after the other, the oldest first, is replaced: the new one joins, and once it answers (`overlap` later) the old
    /// one is drained, then removed after `drain`.
    Roll {
        at: Span,
        every: Span,
        times: u32,
        overlap: Span,
        drain: Span,
        identity: Identity,
    },
    /// A backend fails for `down`, again and again. Its connections are not lost by that: what it misses is sent again.
    Flap {
        at: Span,
        backend: u32,
        down: Span,
        every: Span,
        times: u32,
    },
    /// A balancer is lost.
    LoseBalancer { at: Span, balancer: u32 },
}

/// Under which identity a replacement enters the lookup table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Identity {
    /// Its own: slots of all backends move.
    Own,
    /// Of the one it replaces (`backend add --replaces`), when that one is drained: only that one's slots move.
    Inherited,
}

/// Forged packets, each from another address.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flood {
    pub at: Span,
    pub lasts: Span,
    /// Packets (of `syn-then-ack`: pairs) a second.
    pub rate: f64,
    pub kind: FloodKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FloodKind {
    Syn,
    Ack,
    /// Both flags in one packet.
    SynAck,
    /// An opener, and 100 ms later what looks like the end of its handshake: what is remembered of it looks established.
    SynThenAck,
}

/// What a run must show.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Without memory, connections break: the traffic is hard.
    #[serde(default)]
    pub stateless_breaks: bool,
    #[serde(default)]
    pub lru_breaks: bool,
    /// Adaptive tracking breaks nothing at all.
    #[serde(default)]
    pub adaptive_breaks_none: bool,
    /// Adaptive tracking's mean of entries, as a share of full tracking's, is not above this.
    pub mean_at_most: Option<f64>,
    /// The same for the peak.
    pub peak_at_most: Option<f64>,
    /// Sluice's flow table was this full at its worst, so that the flood was one.
    pub fill_at_least: Option<f64>,
}

/// Kinds of connections, and how often each is met.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    /// Share of connections whose client vanishes without a FIN.
    pub vanish: f64,
    /// Between an opener and the handshake's end.
    pub round_trip: Span,
    #[serde(rename = "connections")]
    pub classes: Vec<Class>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    pub name: String,
    /// Of all new connections.
    pub share: f64,
    pub life: Spread,
    /// Between two packets of the client.
    pub pause: Spread,
}

/// Log-normal: half is below the median; two thirds lie between median / e^sigma and median · e^sigma.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    pub median: Span,
    pub sigma: f64,
    /// Cut off here.
    pub most: Span,
}

/// Where the scenario files are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

impl Scenario {
    /// # Errors
    /// When the file, or its traffic's, cannot be read or makes no sense.
    pub fn read(path: &Path) -> Result<Self> {
        let mut scenario: Self = parse(path)?;
        scenario.name = stem(path);
        let traffic = path
            .with_file_name("traffic")
            .join(format!("{}.toml", scenario.traffic));
        scenario.mix = parse(&traffic)?;
        scenario
            .check()
            .with_context(|| format!("scenario {}", path.display()))?;
        Ok(scenario)
    }

    /// Every scenario of the folder, in the order of their names.
    ///
    /// # Errors
    /// As [`Scenario::read`].
    pub fn all() -> Result<Vec<Self>> {
        let folder = folder();
        let files = std::fs::read_dir(&folder)
            .with_context(|| format!("the scenarios' folder {}", folder.display()))?;
        let mut found = BTreeMap::new();
        for file in files {
            let path = file?.path();
            if path.extension().is_some_and(|ending| ending == "toml") {
                found.insert(stem(&path), Self::read(&path)?);
            }
        }
        ensure!(!found.is_empty(), "no scenario in {}", folder.display());
        Ok(found.into_values().collect())
    }

    /// Number of slots of the lookup table.
    pub fn slots(&self) -> u32 {
        self.table_size
            .unwrap_or_else(|| TableSize::Auto.resolve(self.backends as usize))
    }

    fn check(&self) -> Result<()> {
        ensure!(self.backends > 0, "backends = 0: there must be one");
        ensure!(
            self.memory.entries.is_power_of_two() && self.memory.entries >= 8,
            "memory.entries = {}: not a power of two of at least 8",
            self.memory.entries
        );
        ensure!(
            (1..=self.memory.entries).contains(&self.memory.cpus),
            "memory.cpus = {}: at least one, and no more than entries",
            self.memory.cpus
        );
        ensure!(self.arrivals > 0.0, "arrivals = {}: none", self.arrivals);
        let shares: f64 = self.mix.classes.iter().map(|class| class.share).sum();
        ensure!(
            (shares - 1.0).abs() < 1e-6,
            "the shares of traffic {} make {shares}, not 1",
            self.traffic
        );
        for event in &self.events {
            match *event {
                Event::LoseBalancer { balancer, .. } if balancer >= self.balancers => bail!(
                    "balancer {balancer} is to be lost, but they are numbered 0 to {}",
                    self.balancers - 1
                ),
                Event::Flap { backend, .. } if backend >= self.backends => bail!(
                    "backend {backend} is to flap, but they are numbered 0 to {}",
                    self.backends - 1
                ),
                _ => {}
            }
        }
        for flood in &self.floods {
            ensure!(
                flood.rate > 0.0,
                "a flood of {} packets a second",
                flood.rate
            );
        }
        Ok(())
    }
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("in {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_reads_and_is_documented() {
        let scenarios = Scenario::all().unwrap();
        let page = include_str!("../../docs/simulation.md");
        for scenario in &scenarios {
            let name = format!("`{}`", scenario.name);
            assert!(page.contains(&name), "docs/simulation.md lacks {name}");
        }
        assert!(scenarios.len() >= 8, "{}", scenarios.len());
    }

    #[test]
    fn a_span_that_is_none_is_named() {
        let error = toml::from_str::<Probes>("fall = \"soon\"\nrise = \"1s\"").unwrap_err();
        assert!(error.to_string().contains("\"soon\" is no time"), "{error}");
    }
}
