//! Sluice's laboratory: a small Internet made of network namespaces, with the real daemon in the middle of it.
//!
//! ```text
//!                      ┌─────────────────── router ──────────────────┐
//!  ┌─ client ───────┐  │ c0                                      lan │  bridge, MTU 1600
//!  │ eth0           ├──┤ 198.51.100.1/24                 10.0.0.1/24 │
//!  │ 198.51.100.10… │  │ 2001:db8:c::1/64           2001:db8:1::1/64 │
//!  │ 2001:db8:c::10…│  │                                             │
//!  └────────────────┘  │ 203.0.113.0/24      → balancer              │
//!                      │ 2001:db8:ffff::/64  → balancer              │
//!                      └──┬───────────────┬───────────────┬──────────┘
//!                         │ lb0           │ b1            │ b2 …
//!                    ┌────┴─────┐   ┌─────┴──────┐  ┌─────┴──────┐
//!                    │ balancer │   │ backend1   │  │ backend2   │
//!                    │ eth0 .2  │   │ eth0 .11   │  │ eth0 .12   │   10.0.0.x, 2001:db8:1::x
//!                    │ sluice   │   │ lo: VIPs   │  │ lo: VIPs   │
//!                    │ run      │   │ sluice     │  │ sluice     │
//!                    └──────────┘   │ decap      │  │ decap      │
//!                                   └────────────┘  └────────────┘
//! ```
//! A request goes client → router → balancer → (encapsulated) → backend; the answer goes backend → router → client,
//! past the balancer. With `two_armed`, the balancer has a second link to the router: it hears clients on `eth0`
//! (10.0.1.2, router's `up0`) and reaches the backends through `eth1` on the bridge, so that frames are redirected.
//!
//! The pieces: [`Lab`] (topology), [`Backend`], [`Client`], [`Daemon`], [`Capture`]. Everything is removed on drop, on
//! Ctrl-C ([`registry::clean_up_on_signals`]) and, after a SIGKILL, by the next laboratory on the machine.

pub mod addresses;
pub mod backend;
pub mod capture;
pub mod client;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod interface;
pub mod metrics;
pub mod netns;
pub mod packet;
mod ping;
pub mod process;
pub mod registry;
mod server;
pub mod stack;
pub mod stats;
pub mod tally;
pub mod topology;
pub mod traffic;
pub mod wait;

pub use addresses::{Family, address, mac};
pub use backend::Backend;
pub use capture::{Capture, Direction, Frame};
pub use client::{Client, Run};
pub use daemon::Daemon;
pub use netns::Namespace;
pub use server::{Counters, HEALTH_PATH};
pub use tally::Tally;
pub use topology::Lab;
pub use traffic::Traffic;
pub use wait::{wait_for, wait_until};
