//! Writing `sluice.toml` for a laboratory: real text, as an operator would write it.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use crate::server::HEALTH_PATH;

/// How the balancer probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    None,
    Tcp,
    Http,
}

/// One `[[service]]`.
#[derive(Clone, Debug)]
pub struct Service {
    pub name: String,
    pub vip: SocketAddr,
    pub protocol: &'static str,
    pub forward: &'static str,
    pub probe: Probe,
    /// Port of the probe; `None`: the service's.
    pub probe_port: Option<u16>,
    pub interval_ms: u32,
    pub rise: u32,
    pub fall: u32,
    /// Address and weight.
    pub backends: Vec<(IpAddr, u32)>,
    /// Further lines of the `[[service]]` table itself.
    pub extra: String,
}

impl Service {
    /// A TCP service, IP-in-IP, without probes.
    pub fn tcp(name: &str, vip: SocketAddr, backends: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            name: name.to_owned(),
            vip,
            protocol: "tcp",
            forward: "ipip",
            probe: Probe::None,
            probe_port: None,
            interval_ms: 200,
            rise: 2,
            fall: 2,
            backends: backends.into_iter().map(|backend| (backend, 1)).collect(),
            extra: String::new(),
        }
    }

    pub fn udp(name: &str, vip: SocketAddr, backends: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            protocol: "udp",
            ..Self::tcp(name, vip, backends)
        }
    }

    /// Probed over HTTP at the service's port.
    pub fn probed(self) -> Self {
        Self {
            probe: Probe::Http,
            ..self
        }
    }

    pub fn forward(self, forward: &'static str) -> Self {
        Self { forward, ..self }
    }

    pub fn weights(mut self, weights: &[u32]) -> Self {
        for (backend, &weight) in self.backends.iter_mut().zip(weights) {
            backend.1 = weight;
        }
        self
    }
}

/// A whole file.
#[derive(Clone, Debug)]
pub struct File {
    pub interfaces: Vec<&'static str>,
    pub xdp_mode: &'static str,
    pub services: Vec<Service>,
}

impl File {
    pub fn new(services: Vec<Service>) -> Self {
        Self {
            interfaces: vec!["eth0"],
            xdp_mode: "native",
            services,
        }
    }

    /// The file's text, everything of the node kept in `directory` and pinned below `pin`.
    pub fn text(&self, directory: &Path, pin: &Path) -> String {
        let interfaces: Vec<String> = self
            .interfaces
            .iter()
            .map(|name| format!("{name:?}"))
            .collect();
        let mut text = format!(
            "[node]\n\
             interfaces = [{}]\n\
             xdp_mode   = \"{}\"\n\
             pin        = \"{}\"\n\
             state      = \"{}\"\n\
             \n\
             [capacity]\n\
             services = 64\n\
             backends = 256\n\
             slots    = 262144\n\
             \n\
             [api]\n\
             socket = \"{}\"\n\
             \n\
             [metrics]\n\
             listen = \"{METRICS}\"\n",
            interfaces.join(", "),
            self.xdp_mode,
            pin.display(),
            directory.join("state").display(),
            socket(directory).display(),
        );
        for service in &self.services {
            write_service(&mut text, service);
        }
        text
    }
}

/// Where the daemon in a laboratory serves its metrics, inside the balancer's namespace.
pub const METRICS: &str = "127.0.0.1:9464";

/// The control socket of the daemon whose files are in `directory`.
pub fn socket(directory: &Path) -> std::path::PathBuf {
    directory.join("sluice.sock")
}

fn write_service(text: &mut String, service: &Service) {
    let Service {
        name,
        vip,
        protocol,
        forward,
        extra,
        ..
    } = service;
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "\n[[service]]\nname     = \"{name}\"\nvip      = \"{vip}\"\nprotocol = \"{protocol}\"\nforward  = \"{forward}\"\n"
    );
    if !extra.is_empty() {
        let _ = writeln!(text, "{extra}");
    }
    let _ = writeln!(text, "  [service.health]");
    let timing = format!(
        "  interval = \"{}ms\"\n  timeout  = \"{}ms\"\n  rise     = {}\n  fall     = {}\n",
        service.interval_ms, service.interval_ms, service.rise, service.fall
    );
    let port = service
        .probe_port
        .map(|port| format!("  port     = {port}\n"))
        .unwrap_or_default();
    let _ = match service.probe {
        Probe::None => writeln!(text, "  kind     = \"none\""),
        Probe::Tcp => write!(text, "  kind     = \"tcp\"\n{port}{timing}"),
        Probe::Http => write!(
            text,
            "  kind     = \"http\"\n  path     = \"{HEALTH_PATH}\"\n{port}{timing}"
        ),
    };
    for (address, weight) in &service.backends {
        let _ = write!(
            text,
            "  [[service.backend]]\n  address  = \"{address}\"\n  weight   = {weight}\n"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_toml_with_the_contracts_names() {
        let service = Service::tcp(
            "web",
            "[2001:db8:ffff::10]:80".parse().unwrap(),
            ["10.0.0.11".parse().unwrap()],
        )
        .probed()
        .weights(&[4]);
        let text = File::new(vec![service]).text(Path::new("/tmp/x"), Path::new("/sys/fs/bpf/x"));
        let read: toml::Table = text.parse().unwrap();
        assert_eq!(read["api"]["socket"].as_str(), Some("/tmp/x/sluice.sock"));
        let service = &read["service"][0];
        assert_eq!(service["vip"].as_str(), Some("[2001:db8:ffff::10]:80"));
        assert_eq!(service["health"]["path"].as_str(), Some("/healthz"));
        assert_eq!(service["backend"][0]["weight"].as_integer(), Some(4));
    }
}
