//! Sluice's daemon and command line.
//!
//! ```text
//! config, CLI/API, probes, netlink ─▶ events ─▶ state ─▶ plan ─▶ operations ─▶ dataplane
//! ```
//! `config`, `maglev`, `state`, `plan`, `tracking` and `health::fsm` are pure: no tokio, no aya, clock passed in.

pub mod api;
pub mod check;
mod claim;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod health;
pub mod maglev;
pub mod metrics;
pub mod model;
pub mod netlink;
pub mod plan;
pub mod state;
pub mod tracking;
