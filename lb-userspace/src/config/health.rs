//! `[service.health]`: how the backends of a service are probed.

use std::time::Duration;

use super::error::Problems;
use super::read::{Field, HEALTH, Section};
use crate::model::{HealthSpec, ProbeKind, Protocol};

const INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3_600);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(10);
pub(super) const DEFAULT_EXPECT: (u16, u16) = (200, 399);

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    None,
    Tcp,
    Http,
}

/// `protocol` and `service_port` are `None` when they are wrong; the port is 0 when the service answers on every port.
pub(super) fn resolve(
    service: &Section,
    protocol: Option<Protocol>,
    service_port: Option<u16>,
    problems: &mut Problems,
) -> HealthSpec {
    let mut spec = HealthSpec::default();
    let Some(field) = service.field("health") else {
        match protocol {
            Some(Protocol::Tcp) if service_port == Some(0) => problems.add(
                service.at,
                service.key("health.port"),
                None,
                "missing: a service on every port says nothing of where to probe; \
                 write port = N under [service.health], or kind = \"none\"",
            ),
            // A TCP handshake says nothing about a UDP server.
            Some(Protocol::Udp) => spec.kind = ProbeKind::None,
            _ => {}
        }
        return spec;
    };
    let section = Section::open(field.node, field.path, &HEALTH, problems);

    let kind = match section.field("kind") {
        Some(field) => kind(&field, problems).unwrap_or(Kind::Http),
        None if protocol == Some(Protocol::Udp) => {
            problems.add(
                section.at,
                section.key("kind"),
                None,
                "missing, and a UDP service has no default; \
                 write kind = \"tcp\" or \"http\" (and the port to probe), or \"none\"",
            );
            Kind::None
        }
        None => Kind::Tcp,
    };
    spec.kind = match (kind, http(&section, problems)) {
        (Kind::None, _) => ProbeKind::None,
        (Kind::Tcp, _) => ProbeKind::Tcp,
        (Kind::Http, http) => http,
    };
    if kind == Kind::Tcp {
        for key in ["path", "host", "expect"] {
            if let Some(field) = section.field(key) {
                field.wrong(
                    problems,
                    "only an HTTP probe has it; write kind = \"http\", or remove it",
                );
            }
        }
    }

    match section.field("port") {
        Some(field) => {
            let port = field.integer(1..=u32::from(u16::MAX), problems);
            spec.port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
        }
        None if kind != Kind::None && service_port == Some(0) => problems.add(
            section.at,
            section.key("port"),
            None,
            "missing: a service on every port says nothing of where to probe; \
             write port = N, or kind = \"none\"",
        ),
        None => {}
    }
    timing(&section, &mut spec, problems);
    for (key, value) in [("rise", &mut spec.rise), ("fall", &mut spec.fall)] {
        if let Some(field) = section.field(key) {
            *value = field.integer(1..=100, problems).unwrap_or(*value);
        }
    }
    spec
}

fn kind(field: &Field, problems: &mut Problems) -> Option<Kind> {
    let known = [
        ("tcp", Kind::Tcp),
        ("http", Kind::Http),
        ("none", Kind::None),
    ];
    let later = ["https", "grpc", "udp", "dns", "icmp", "exec"];
    field.choice(&known, &later, problems)
}

/// An unwritten timeout is the default, or the interval where that is shorter.
fn timing(section: &Section, spec: &mut HealthSpec, problems: &mut Problems) {
    let field = section.field("interval");
    let interval = field.as_ref().map_or(Some(spec.interval), |field| {
        field.duration(INTERVAL, problems)
    });
    spec.interval = interval.unwrap_or(spec.interval);
    spec.timeout = spec.timeout.min(spec.interval);

    let Some(field) = section.field("timeout") else {
        return;
    };
    let range = SHORTEST_TIMEOUT..=*INTERVAL.end();
    let Some(timeout) = field.duration(range, problems) else {
        return;
    };
    // With a wrong interval there is nothing to compare with.
    if interval.is_some_and(|interval| timeout > interval) {
        let interval = humantime::format_duration(spec.interval);
        field.wrong(
            problems,
            format!("longer than the interval of {interval}; write at most \"{interval}\", or a longer interval"),
        );
    }
    spec.timeout = timeout;
}

/// What an HTTP probe asks for, checked whatever the kind.
fn http(section: &Section, problems: &mut Problems) -> ProbeKind {
    // What may stand in a request line or a header value as one word.
    let is_word = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let mut path = "/".to_owned();
    let mut host = None;
    let mut expect = DEFAULT_EXPECT;
    if let Some(field) = section.field("path")
        && let Some(text) = field.string("a path in quotes, like \"/healthz\"", problems)
    {
        if !text.starts_with('/') {
            field.wrong(
                problems,
                "does not start with a slash; write a path, like \"/healthz\"",
            );
        } else if !is_word(text) {
            field.wrong(
                problems,
                "has characters that a request line cannot carry; write blanks and what is not ASCII as %XX",
            );
        }
        text.clone_into(&mut path);
    }
    if let Some(field) = section.field("host")
        && let Some(text) =
            field.string("a host name in quotes, like \"www.example.org\"", problems)
    {
        if !is_word(text) {
            field.wrong(
                problems,
                "not a host name; write one, like \"www.example.org\", or remove the key",
            );
        }
        host = Some(text.to_owned());
    }
    if let Some(field) = section.field("expect") {
        expect = statuses(&field, problems).unwrap_or(DEFAULT_EXPECT);
    }
    ProbeKind::Http { path, host, expect }
}

/// `"200-399"` or `"204"`.
fn statuses(field: &Field, problems: &mut Problems) -> Option<(u16, u16)> {
    const EXAMPLE: &str =
        "an HTTP status or a range of them in quotes, like \"200-399\" or \"204\"";
    let text = field.string(EXAMPLE, problems)?;
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let status = |text: &str| {
        let number = text.trim().parse::<u16>().ok();
        number.filter(|number| (100..=599).contains(number))
    };
    let range = status(low)
        .zip(status(high))
        .filter(|(low, high)| low <= high);
    if range.is_none() {
        field.wrong(
            problems,
            format!("not a status or a range; write {EXAMPLE}"),
        );
    }
    range
}
