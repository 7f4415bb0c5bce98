//! The control socket: JSON over HTTP over a Unix socket.

pub mod client;
pub mod dto;
pub mod server;
