//! Interfaces of this host, for attaching to them and for describing them to an operator.

use std::net::IpAddr;

use super::ethtool;
use super::kernel::Kernel;

/// One interface, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub ifindex: u32,
    pub name: String,
    pub mtu: u32,
    /// `None` when it is not Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Administratively up.
    pub up: bool,
    /// The other end is there.
    pub carrier: bool,
    pub loopback: bool,
    pub addresses: Vec<IpAddr>,
    /// For example `ixgbe`, `virtio_net`, `veth`.
    pub driver: Option<String>,
    /// Large receive offload is on.
    pub lro: bool,
}

/// The interface of that name in the calling thread's network namespace, or `None`.
pub async fn interface_by_name(name: &str) -> anyhow::Result<Option<Interface>> {
    Ok(interfaces()
        .await?
        .into_iter()
        .find(|interface| interface.name == name))
}

/// Every interface of the calling thread's network namespace.
pub async fn interfaces() -> anyhow::Result<Vec<Interface>> {
    let kernel = Kernel::open()?;
    let addresses = kernel.addresses().await?;
    let links = kernel.links().await?;
    let mut interfaces: Vec<_> = links
        .into_iter()
        .map(|(ifindex, link)| Interface {
            ifindex,
            mtu: link.mtu,
            mac: link.mac,
            up: link.up,
            carrier: link.carrier,
            loopback: link.loopback,
            addresses: addresses
                .iter()
                .filter(|(index, _)| *index == ifindex)
                .map(|(_, ip)| *ip)
                .collect(),
            driver: ethtool::driver(&link.name),
            lro: ethtool::large_receive_offload(&link.name).unwrap_or(false),
            name: link.name,
        })
        .collect();
    interfaces.sort_by_key(|interface| interface.ifindex);
    Ok(interfaces)
}

/// Addresses of one interface, in the kernel's order (the primary one of each family first).
pub async fn interface_addresses(ifindex: u32) -> anyhow::Result<Vec<IpAddr>> {
    let addresses = Kernel::open()?.addresses().await?;
    Ok(addresses
        .into_iter()
        .filter(|(index, _)| *index == ifindex)
        .map(|(_, ip)| ip)
        .collect())
}
