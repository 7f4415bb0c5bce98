//! The whole file, and the rules that span services: unique names and VIPs, and room in the maps.

use std::collections::HashMap;

use super::error::Problems;
use super::node;
use super::raw::Node;
use super::read::{ROOT, Section};
use super::service::{self, Declared};
use crate::model::{Capacity, Config};

/// `None` only if something has been noted.
pub(super) fn config(root: &Node, problems: &mut Problems) -> Option<Config> {
    let root = Section::open(root, String::new(), &ROOT, problems);
    let node = node::node(&root, problems);
    let capacity = node::capacity(&root, problems);
    let socket = node::socket(&root, problems);
    let metrics_listen = node::metrics_listen(&root, problems);

    let declared: Vec<Declared> = root
        .field("service")
        .and_then(|field| field.items("[[service]]", problems))
        .unwrap_or_default()
        .into_iter()
        .zip(1..)
        .map(|(item, number)| {
            service::declared(item.node, service::path(item.node, number), problems)
        })
        .collect();
    unique(&declared, problems);
    fits(&root, capacity, &declared, problems);

    Some(Config {
        node,
        capacity,
        socket,
        metrics_listen,
        services: declared
            .into_iter()
            .map(|declared| declared.spec)
            .collect::<Option<_>>()?,
    })
}

fn unique(declared: &[Declared], problems: &mut Problems) {
    let mut names = HashMap::new();
    let mut keys = HashMap::new();
    for service in declared {
        if let Some(name) = &service.name
            && let Some(first) = names.insert(name, service.name_at)
        {
            let line = problems.line_hint(first);
            problems.add(
                service.name_at,
                format!("{}.name", service.path),
                Some(format!("{name:?}")),
                format!(
                    "a service of this name exists already{line}; give one of them another name"
                ),
            );
        }
        if let Some(key) = service.key
            && let Some(first) = keys.insert(key, service)
        {
            let line = problems.line_hint(first.vip_at);
            problems.add(
                service.vip_at,
                format!("{}.vip", service.path),
                None,
                format!(
                    "{}{line} answers for {key} already; change one, or join their backends in one service",
                    first.path
                ),
            );
        }
    }
}

struct Limit {
    key: &'static str,
    limit: u32,
    what: &'static str,
    needs: fn(&Declared) -> usize,
}

/// Whether the maps have room for everything. Each limit is blamed where it is written or, if it is the default, on
/// the service that goes beyond it.
fn fits(root: &Section, capacity: Capacity, declared: &[Declared], problems: &mut Problems) {
    let limits = [
        Limit {
            key: "services",
            limit: capacity.services,
            what: "services",
            needs: |_| 1,
        },
        Limit {
            key: "backends",
            limit: capacity.backends,
            what: "backends (service × backend)",
            needs: |service| service.backends,
        },
        Limit {
            key: "slots",
            limit: capacity.slots,
            what: "slots for its lookup tables",
            needs: |service| service.slots as usize,
        },
    ];
    for Limit {
        key,
        limit,
        what,
        needs,
    } in limits
    {
        let mut needed = 0;
        let mut beyond = None;
        for service in declared {
            needed += needs(service);
            if needed > limit as usize && beyond.is_none() {
                beyond = Some(service.at);
            }
        }
        let Some(beyond) = beyond else { continue };
        let written = root
            .field("capacity")
            .and_then(|field| field.node.get(key))
            .map(|node| node.at);
        problems.add(
            written.unwrap_or(beyond),
            format!("capacity.{key}"),
            None,
            format!(
                "the file needs {needed} {what} and the limit is {limit}; write {key} = {needed} or more under [capacity]"
            ),
        );
    }
}
