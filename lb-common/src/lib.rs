//! What kernel and user space share: the maps' layout, and the whole data-path logic.
//!
//! The very same source runs in the kernel (compiled by `lb-ebpf`), in native tests and in property tests. It is written over two
//! small traits: [`packet::Frame`], the bytes of one packet, and [`process::Tables`], what the daemon has programmed.
//!
//! Start reading at [`process::process`]: it is where a packet goes, from top to bottom.

#![no_std]

#[cfg(not(target_arch = "bpf"))]
extern crate std;

pub mod abi;
pub mod address;
pub mod checksum;
pub mod decap;
pub mod encap;
pub mod event;
pub mod flow;
pub mod gue;
pub mod hash;
pub mod icmp;
#[cfg(not(target_arch = "bpf"))]
pub mod native;
pub mod packet;
pub mod parse;
pub mod process;
pub mod reason;
pub mod service;
pub mod slot;
pub mod track;
