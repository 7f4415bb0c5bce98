//! `sluice status`: the overview, what needs attention first.

use std::fmt::Write as _;

use clap::Args;
use comfy_table::Cell;

use super::output::{Style, Tone, bytes, count, duration, moment, tone_of_eligible};
use super::{Failure, Json, output, wait};
use crate::api::client::Client;
use crate::api::dto::{
    CapacityUse, InterfaceStatus, ReasonCount, ServiceSummary, SlotModes, Status, TrackingStatus,
};

/// Show the daemon, its interfaces, services, remembered flows, packet counters and capacity
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice status
  sluice status --json | jq .ready")]
pub struct StatusArgs {
    #[command(flatten)]
    json: Json,
}

pub fn run(args: StatusArgs, client: &Client) -> Result<(), Failure> {
    let status = wait(client.status())??;
    if args.json.json {
        return output::print_json(&status);
    }
    output::print(&render(&status, Style::stdout()))
}

fn render(status: &Status, style: Style) -> String {
    let mut text = attention(status, style);
    let state = if status.ready {
        style.paint("ready", Tone::Good)
    } else {
        style.paint("not ready", Tone::Bad)
    };
    // Writing into a string cannot fail.
    let _ = writeln!(
        text,
        "sluice {}, pid {}, running for {}, {state}",
        status.version,
        status.pid,
        duration(status.uptime_seconds)
    );
    let _ = writeln!(
        text,
        "configuration {}, loaded {}",
        status.config,
        moment(status.config_loaded_at)
    );
    section(&mut text, interfaces(&status.interfaces, style));
    if status.services.is_empty() {
        text.push_str(
            "\nno services: add one with `sluice service add`, or to the configuration\n",
        );
    } else {
        section(&mut text, services(&status.services, style));
    }
    section(&mut text, tracking(&status.tracking, style));
    if !status.packets.is_empty() {
        section(&mut text, packets(&status.packets, style));
    }
    section(&mut text, capacity(&status.capacity, style));
    text
}

fn section(text: &mut String, table: String) {
    text.push('\n');
    text.push_str(&table);
}

/// What an operator must see before anything else.
fn attention(status: &Status, style: Style) -> String {
    let mut text = String::new();
    if !status.ready {
        let _ = writeln!(text, "{}", style.paint("NOT READY", Tone::Bad));
        for reason in &status.not_ready {
            let _ = writeln!(text, "  {reason}");
        }
        text.push('\n');
    }
    if let Some(error) = &status.config_error {
        let title = style.paint("CONFIGURATION REFUSED", Tone::Bad);
        let _ = writeln!(text, "{title}: the state loaded before keeps running");
        for line in error.lines() {
            let _ = writeln!(text, "  {line}");
        }
        text.push('\n');
    }
    text
}

fn interfaces(interfaces: &[InterfaceStatus], style: Style) -> String {
    let rows = interfaces
        .iter()
        .map(|interface| {
            let got = match interface.got {
                Some(mode) => {
                    let asked_for = interface.note.is_none();
                    let tone = if asked_for {
                        Tone::Good
                    } else {
                        Tone::Doubtful
                    };
                    style.cell(mode, tone)
                }
                None => style.cell("not attached", Tone::Bad),
            };
            vec![
                Cell::new(&interface.name),
                got,
                Cell::new(interface.asked),
                Cell::new(interface.note.as_deref().unwrap_or_default()),
            ]
        })
        .collect();
    style.table(&["INTERFACE", "XDP", "ASKED", "NOTE"], &[], rows)
}

/// The table of `status` and of `service list`.
pub fn services(services: &[ServiceSummary], style: Style) -> String {
    let header = [
        "SERVICE", "VIP", "FORWARD", "ELIGIBLE", "SLOTS", "LEARN", "RESIDUE", "FLOWS", "PACKETS",
        "BYTES", "ORIGIN",
    ];
    let rows = services
        .iter()
        .map(|service| {
            vec![
                Cell::new(&service.name),
                Cell::new(format!("{}/{}", service.vip, service.protocol)),
                Cell::new(service.forward),
                style.cell(
                    format!("{}/{}", service.eligible, service.backends),
                    tone_of_eligible(service.eligible, service.backends),
                ),
                Cell::new(count(u64::from(service.table_size))),
                Cell::new(count(service.slot_modes.learn)),
                Cell::new(count(service.slot_modes.residue)),
                Cell::new(count(service.flows)),
                Cell::new(count(service.packets)),
                Cell::new(bytes(service.bytes)),
                Cell::new(&service.origin),
            ]
        })
        .collect();
    style.table(&header, &[3, 4, 5, 6, 7, 8, 9], rows)
}

/// How connections survive change just now.
fn tracking(tracking: &TrackingStatus, style: Style) -> String {
    let entries = &tracking.entries;
    let states = format!(
        "{} syn, {} learnt, {} established, {} closed",
        count(entries.syn),
        count(entries.learnt),
        count(entries.established),
        count(entries.closed)
    );
    let row =
        |what, now, share, detail| vec![Cell::new(what), Cell::new(now), share, Cell::new(detail)];
    // Whoever sees the first of these wants to know it: at rest, and with room, there are none.
    let lost = |what, times, meaning| {
        let tone = if times > 0 {
            Tone::Doubtful
        } else {
            Tone::Plain
        };
        vec![
            Cell::new(what),
            style.cell(count(times), tone),
            Cell::new(""),
            Cell::new(meaning),
        ]
    };
    let slots = tracking.slots;
    let changing = slots.learn + slots.residue;
    let all = slots.steady + changing;
    let rows = vec![
        row(
            "slots in change",
            count(changing),
            share(changing, all, Tone::Plain, style),
            modes(&slots),
        ),
        row(
            "flows remembered",
            count(entries.sum()),
            share(
                entries.sum(),
                tracking.capacity,
                tone_of_fill(entries.sum(), tracking.capacity),
                style,
            ),
            states,
        ),
        lost(
            "failed pins",
            tracking.pins_failed,
            "openers that found the flow table full",
        ),
        lost(
            "lost learning",
            tracking.learning_lost,
            "other flows that did",
        ),
    ];
    style.table(&["TRACKING", "NOW", "SHARE", "DETAIL"], &[1, 2], rows)
}

/// `1,000 steady, 21 learn, 0 residue`
pub fn modes(slots: &SlotModes) -> String {
    format!(
        "{} steady, {} learn, {} residue",
        count(slots.steady),
        count(slots.learn),
        count(slots.residue)
    )
}

fn share(part: u64, whole: u64, tone: Tone, style: Style) -> Cell {
    let percent = match whole {
        0 => 0.0,
        _ => part as f64 * 100.0 / whole as f64,
    };
    style.cell(format!("{percent:.1} %"), tone)
}

/// Beyond a quarter, buckets begin to be full here and there (docs/config.md, `flows`).
const fn tone_of_fill(used: u64, capacity: u64) -> Tone {
    if used.saturating_mul(4) > capacity {
        Tone::Doubtful
    } else {
        Tone::Plain
    }
}

fn packets(reasons: &[ReasonCount], style: Style) -> String {
    let rows = reasons
        .iter()
        .map(|row| {
            let tone = match row.verdict.as_str() {
                "drop" | "abort" => Tone::Bad,
                _ => Tone::Plain,
            };
            vec![
                style.cell(&row.verdict, tone),
                Cell::new(&row.reason),
                Cell::new(count(row.packets)),
                Cell::new(&row.help),
            ]
        })
        .collect();
    style.table(&["VERDICT", "REASON", "PACKETS", "MEANING"], &[2], rows)
}

fn capacity(capacity: &[CapacityUse], style: Style) -> String {
    let rows = capacity
        .iter()
        .map(|row| {
            let percent = match row.limit {
                0 => 100.0,
                limit => row.used as f64 * 100.0 / limit as f64,
            };
            let tone = match percent {
                p if p >= 95.0 => Tone::Bad,
                p if p >= 80.0 => Tone::Doubtful,
                _ => Tone::Plain,
            };
            vec![
                Cell::new(&row.what),
                Cell::new(count(row.used)),
                Cell::new(count(row.limit)),
                style.cell(format!("{percent:.1} %"), tone),
            ]
        })
        .collect();
    style.table(&["CAPACITY", "USED", "LIMIT", "SHARE"], &[1, 2, 3], rows)
}
