//! What a namespace's own TCP and UDP counted: /proc/net/snmp and /proc/net/netstat, as `nstat` reads them.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

use crate::netns::Namespace;

/// A reading of every counter, by names such as `TcpRetransSegs`.
#[derive(Clone, Debug)]
pub struct Stack(BTreeMap<String, u64>);

impl Stack {
    pub fn of(namespace: &Namespace) -> Result<Self> {
        namespace.run(|| {
            let mut counters = BTreeMap::new();
            for name in ["snmp", "netstat"] {
                // `/proc/net` would be the main thread's.
                let path = format!("/proc/thread-self/net/{name}");
                let text =
                    fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
                parse(&text, &mut counters)
                    .with_context(|| format!("{path} is not as expected:\n{text}"))?;
            }
            Ok(Self(counters))
        })
    }

    /// An error if this kernel does not count that.
    pub fn get(&self, name: &str) -> Result<u64> {
        let value = self.0.get(name).copied();
        value.with_context(|| format!("this kernel has no counter {name}"))
    }

    /// TCP segments that were sent again and had not arrived the first time: what got lost on the way there.
    ///
    /// A sender that repeats itself out of impatience, as on a busy machine, is told so by the receiver (DSACK). Nobody tells it
    /// so of a SYN: those are left out.
    pub fn lost_segments(&self) -> Result<u64> {
        let again = self.get("TcpRetransSegs")? - self.get("TcpExtTCPSynRetrans")?;
        let needless = self.get("TcpExtTCPDSACKRecv")? + self.get("TcpExtTCPDSACKOfoRecv")?;
        Ok(again.saturating_sub(needless))
    }
}

/// Pairs of lines, `Name: key key …` and `Name: value value …`.
fn parse(text: &str, counters: &mut BTreeMap<String, u64>) -> Option<()> {
    let mut lines = text.lines();
    while let Some(keys) = lines.next() {
        let (group, keys) = keys.split_once(": ")?;
        let values = lines.next()?.strip_prefix(group)?.strip_prefix(": ")?;
        for (key, value) in keys.split(' ').zip(values.split(' ')) {
            // `MaxConn` is -1.
            if let Ok(value) = value.parse() {
                counters.insert(format!("{group}{key}"), value);
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_named_by_group_and_key() {
        let mut counters = BTreeMap::new();
        let text = "Tcp: MaxConn RetransSegs\nTcp: -1 7\nUdp: InDatagrams\nUdp: 3\n";
        parse(text, &mut counters).unwrap();
        assert_eq!(counters.get("TcpRetransSegs"), Some(&7));
        assert_eq!(counters.get("UdpInDatagrams"), Some(&3));
        assert_eq!(counters.len(), 2);
        assert!(parse("Tcp: a\nUdp: 1\n", &mut counters).is_none());
    }
}
