//! The laboratory's network: namespaces, links, addresses, routes.
//!
//! Owns: building it in one go and taking it down. Does not own: the plan of addresses (`addresses`) and what runs in
//! it (`backend`, `client`, `daemon`). The drawing is in the crate's documentation.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};

use crate::addresses::{VIPS, address, mac};
use crate::backend::Backend;
use crate::client::Client;
use crate::interface::{XdpPass, disable_offloads, is_root};
use crate::netns::Namespace;
use crate::registry::{LabId, sweep_stale};

/// MTU of everything behind the balancer: room for a full client packet inside an outer header. The clients' link
/// keeps 1500, as on the Internet.
const BACKEND_MTU: u32 = 1600;
/// What a laboratory shall look like.
#[derive(Clone, Copy, Debug)]
pub struct Builder {
    backends: usize,
    clients: usize,
    two_armed: bool,
    native: bool,
}

impl Builder {
    pub const fn backends(mut self, backends: usize) -> Self {
        self.backends = backends;
        self
    }

    /// How many addresses (of each family) the client has.
    pub const fn clients(mut self, clients: usize) -> Self {
        self.clients = clients;
        self
    }

    /// The balancer hears clients on `eth0`, a link of its own, and reaches backends through `eth1`.
    pub const fn two_armed(mut self, two_armed: bool) -> Self {
        self.two_armed = two_armed;
        self
    }

    /// Leave out what only native XDP on veth needs (a program on the peer).
    pub const fn generic_only(mut self) -> Self {
        self.native = false;
        self
    }

    pub fn build(self) -> Result<Lab> {
        ensure!(
            is_root(),
            "the laboratory makes network namespaces: run it as root (or see vagrant/ for a VM)"
        );
        ensure!(
            (1..=64).contains(&self.backends),
            "a laboratory has 1 to 64 backends, not {}",
            self.backends
        );
        ensure!(
            (1..=64).contains(&self.clients),
            "a laboratory has 1 to 64 client addresses, not {}",
            self.clients
        );
        static SWEEP: std::sync::Once = std::sync::Once::new();
        SWEEP.call_once(|| {
            sweep_stale();
        });
        mount_bpffs()?;
        // From here on `Lab::drop` cleans up, whatever fails.
        let id = LabId::register();
        let guard = Guard(id);
        fs::create_dir_all(id.temporary_directory())
            .with_context(|| format!("cannot make {}", id.temporary_directory().display()))?;

        let router = Namespace::create(&id.namespace("router"))?;
        let client = Namespace::create(&id.namespace("client"))?;
        let balancer = Namespace::create(&id.namespace("balancer"))?;
        let backends = (1..=self.backends)
            .map(|number| Namespace::create(&id.namespace(&format!("backend{number}"))))
            .collect::<Result<Vec<_>>>()?;

        router.sysctls(&[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
        ])?;
        for namespace in [&router, &client, &balancer].into_iter().chain(&backends) {
            namespace.sysctls(&[
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
                ("ipv6/conf/all/accept_dad", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/default/accept_ra", "0"),
            ])?;
        }
        client.sysctls(&[("ipv4/ip_local_port_range", "1024 65000")])?;
        for backend in &backends {
            backend.sysctls(&[
                // The VIP on loopback must not be answered for on the wire.
                ("ipv4/conf/all/arp_ignore", "1"),
                ("ipv4/conf/all/arp_announce", "2"),
                ("core/somaxconn", "16384"),
                ("ipv4/tcp_max_syn_backlog", "16384"),
            ])?;
        }

        router.ip_batch(&self.router_batch(&client, &balancer, &backends))?;
        client.ip_batch(&self.client_batch())?;
        balancer.ip_batch(&self.balancer_batch())?;
        for (position, backend) in backends.iter().enumerate() {
            backend.ip_batch(&backend_batch(position + 1))?;
        }

        // The bridge's ports only pass frames on, but a merged frame would be bigger than any the balancer may send.
        let mut ports = vec!["c0".to_owned(), "lb0".to_owned()];
        if self.two_armed {
            ports.push("up0".to_owned());
        }
        ports.extend((1..=self.backends).map(|number| format!("b{number}")));
        router.run(|| ports.iter().try_for_each(|port| disable_offloads(port)))?;
        for namespace in [&client].into_iter().chain(&backends) {
            namespace.run(|| disable_offloads("eth0"))?;
        }
        let mut peers = Vec::new();
        if self.native {
            peers.push(router.run(|| XdpPass::attach("lb0"))?);
            if self.two_armed {
                peers.push(router.run(|| XdpPass::attach("up0"))?);
            }
        }

        std::mem::forget(guard);
        Ok(Lab {
            backends: backends
                .into_iter()
                .enumerate()
                .map(|(position, namespace)| {
                    Backend::new(position + 1, namespace, id.temporary_directory())
                })
                .collect(),
            client: Client::new(client, self.clients),
            router,
            balancer,
            two_armed: self.two_armed,
            _peers: peers,
            id,
        })
    }

    fn router_batch(
        &self,
        client: &Namespace,
        balancer: &Namespace,
        backends: &[Namespace],
    ) -> String {
        let mut batch = format!(
            "link set lo up\n\
             link add lan address {bridge} type bridge mcast_snooping 0 forward_delay 0 stp_state 0\n\
             link add c0 address {port} type veth peer name eth0 address {client_mac} netns {client}\n",
            bridge = mac::text(mac::BRIDGE),
            port = mac::text(mac::CLIENT_PORT),
            client_mac = mac::text(mac::CLIENT),
            client = client.name(),
        );
        let back = if self.two_armed { "eth1" } else { "eth0" };
        batch.push_str(&format!(
            "link add lb0 mtu {BACKEND_MTU} type veth peer name {back} mtu {BACKEND_MTU} address {} netns {}\n\
             link set lb0 master lan up\n",
            mac::text(mac::BALANCER),
            balancer.name(),
        ));
        for (position, backend) in backends.iter().enumerate() {
            let number = position + 1;
            batch.push_str(&format!(
                "link add b{number} mtu {BACKEND_MTU} type veth peer name eth0 mtu {BACKEND_MTU} address {} netns {}\n\
                 link set b{number} master lan up\n",
                mac::text(mac::backend(number)),
                backend.name(),
            ));
        }
        batch.push_str(
            "link set lan up\n\
             addr add 10.0.0.1/24 dev lan\n\
             addr add 2001:db8:1::1/64 dev lan nodad\n\
             link set c0 up\n\
             addr add 198.51.100.1/24 dev c0\n\
             addr add 2001:db8:c::1/64 dev c0 nodad\n",
        );
        let (v4, v6) = if self.two_armed {
            batch.push_str(&format!(
                "link add up0 address {} type veth peer name eth0 address {} netns {}\n\
                 link set up0 up\n\
                 addr add 10.0.1.1/24 dev up0\n\
                 addr add 2001:db8:2::1/64 dev up0 nodad\n",
                mac::text(mac::FRONT_PORT),
                mac::text(mac::BALANCER_FRONT),
                balancer.name(),
            ));
            ("10.0.1.2", "2001:db8:2::2")
        } else {
            ("10.0.0.2", "2001:db8:1::2")
        };
        batch.push_str(&format!(
            "route add 203.0.113.0/24 via {v4}\nroute add 2001:db8:ffff::/64 via {v6}\n"
        ));
        batch
    }

    fn client_batch(&self) -> String {
        let mut batch = String::from("link set lo up\nlink set eth0 up\n");
        for number in 0..self.clients {
            batch.push_str(&format!(
                "addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n",
                address::client_v4(number),
                address::client_v6(number)
            ));
        }
        batch.push_str("route add default via 198.51.100.1\nroute add ::/0 via 2001:db8:c::1\n");
        batch
    }

    fn balancer_batch(&self) -> String {
        let mut batch = String::from("link set lo up\nlink set eth0 up\n");
        let (back, gateways) = if self.two_armed {
            batch.push_str(
                "link set eth1 up\naddr add 10.0.1.2/24 dev eth0\naddr add 2001:db8:2::2/64 dev eth0 nodad\n",
            );
            ("eth1", ("10.0.1.1", "2001:db8:2::1"))
        } else {
            ("eth0", ("10.0.0.1", "2001:db8:1::1"))
        };
        batch.push_str(&format!(
            "addr add {}/24 dev {back}\naddr add {}/64 dev {back} nodad\n\
             route add default via {}\nroute add ::/0 via {}\n",
            address::BALANCER_V4,
            address::BALANCER_V6,
            gateways.0,
            gateways.1,
        ));
        batch
    }
}

fn backend_batch(number: usize) -> String {
    let mut batch = format!(
        "link set lo up\nlink set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n",
        address::backend_v4(number),
        address::backend_v6(number)
    );
    for vip in 0..VIPS {
        batch.push_str(&format!(
            "addr add {}/32 dev lo\naddr add {}/128 dev lo nodad\n",
            address::vip_v4(vip),
            address::vip_v6(vip)
        ));
    }
    batch.push_str("route add default via 10.0.0.1\nroute add ::/0 via 2001:db8:1::1\n");
    batch
}

/// A standing laboratory; everything it made disappears with it.
///
/// Fields drop in this order: backends and client first (their sockets and processes), then the namespaces.
pub struct Lab {
    backends: Vec<Backend>,
    client: Client,
    _peers: Vec<XdpPass>,
    balancer: Namespace,
    router: Namespace,
    two_armed: bool,
    id: LabId,
}

impl Lab {
    pub const fn builder() -> Builder {
        Builder {
            backends: 3,
            clients: 4,
            two_armed: false,
            native: true,
        }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn router(&self) -> &Namespace {
        &self.router
    }

    pub fn balancer(&self) -> &Namespace {
        &self.balancer
    }

    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// The backend with this number, from 1.
    pub fn backend(&self, number: usize) -> &Backend {
        &self.backends[number - 1]
    }

    /// The router's port on which frames leave for the balancer.
    pub fn balancer_port(&self) -> &'static str {
        if self.two_armed { "up0" } else { "lb0" }
    }

    /// MAC of the balancer's interface that hears clients.
    pub fn balancer_mac(&self) -> [u8; 6] {
        if self.two_armed {
            mac::BALANCER_FRONT
        } else {
            mac::BALANCER
        }
    }

    /// Starts `sluice decap` on every backend and waits until each is attached.
    pub fn start_decapsulators(&self) -> Result<()> {
        self.backends
            .iter()
            .try_for_each(Backend::launch_decapsulator)?;
        self.backends
            .iter()
            .try_for_each(Backend::wait_for_decapsulator)
    }

    pub fn pin_directory(&self) -> PathBuf {
        self.id.pin_directory()
    }

    pub fn temporary_directory(&self) -> PathBuf {
        self.id.temporary_directory()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for backend in &self.backends {
            backend.shut_down();
        }
        self.id.remove();
    }
}

/// Removes a laboratory whose building failed half-way.
struct Guard(LabId);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.remove();
    }
}

/// Pins live in bpffs. Mounted once, left mounted: it is where every Linux distribution has it.
fn mount_bpffs() -> Result<()> {
    const BPFFS: &str = "/sys/fs/bpf";
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    let mounted =
        || nix::sys::statfs::statfs(BPFFS).is_ok_and(|fs| fs.filesystem_type().0 == BPF_FS_MAGIC);
    static ONCE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _guard = ONCE.lock().unwrap_or_else(|poison| poison.into_inner());
    if !mounted() {
        mount(
            Some("bpffs"),
            Path::new(BPFFS),
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .context("cannot mount bpffs on /sys/fs/bpf")?;
    }
    Ok(())
}
