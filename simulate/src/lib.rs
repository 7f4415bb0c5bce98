//! Deterministic simulator: the same traffic and the same events, met by several designs of a balancer.
//!
//! ```text
//!  scenarios/*.toml ─▶ scenario ─▶ control (operator, probes, lookup table) ─┐
//!                          │                                                 ▼
//!                          └─────▶ traffic ─▶ run (clients, clock) ─▶ designs ─▶ outcome ─▶ report
//! ```
//! Owns: clients, their packets and retransmissions, floods, the course of events, the designs ours is compared with, and the
//! bookkeeping: which connections broke, why, and how much was remembered. Does not own a single rule of ours: packets go through
//! `lb_common::track`, statuses, changes and chores through `lb_userspace::tracking`, tables through `lb_userspace::maglev`.
//!
//! One thread, one clock in nanoseconds, one seed in each scenario: the same file gives the same numbers every time (another libm may
//! round a draw differently). What runs beside each other in a real balancer is not modelled here: that is
//! `lb-userspace/tests/tracking_model`.

pub mod control;
pub mod designs;
pub mod outcome;
mod random;
pub mod report;
mod run;
pub mod scenario;
mod traffic;
pub mod verdict;

pub use outcome::{Cause, Outcome};
pub use run::simulate;
pub use scenario::Scenario;
