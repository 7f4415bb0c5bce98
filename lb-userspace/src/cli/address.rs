//! Addresses as people type them: IPv6 with or without brackets, VIPs with port and protocol.

use std::net::IpAddr;

use crate::model::{Protocol, ServiceKey};

/// An IP address; IPv6 may stand in brackets.
pub fn ip(text: &str) -> Result<IpAddr, String> {
    let bare = text
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse().map_err(|_| {
        format!("`{text}` is not an IP address; write for example 10.0.0.11 or 2001:db8::11")
    })
}

/// `ADDRESS` or `ADDRESS=WEIGHT`.
pub fn ip_with_weight(text: &str) -> Result<(IpAddr, Option<u32>), String> {
    match text.split_once('=') {
        None => Ok((ip(text)?, None)),
        Some((address, weight)) => {
            let weight = weight.parse().map_err(|_| {
                format!("`{weight}` is not a weight; write for example 10.0.0.11=3")
            })?;
            Ok((ip(address)?, Some(weight)))
        }
    }
}

/// What a service answers for, as typed; the protocol may be given apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vip {
    address: IpAddr,
    /// 0 = every port.
    port: u16,
    pub protocol: Option<Protocol>,
}

impl Vip {
    /// As `vip` of a `[[service]]` wants it: `203.0.113.10:80`, `[2001:db8::1]:443`, `203.0.113.10:*`.
    pub fn config_text(&self) -> String {
        let key = ServiceKey {
            vip: self.address,
            port: self.port,
            protocol: Protocol::Tcp,
        };
        let text = key.to_string();
        text.rsplit_once('/')
            .map_or(text.clone(), |(vip, _)| vip.to_owned())
    }
}

/// `VIP:PORT[/PROTO]`; port `*` = every port.
pub fn vip(text: &str) -> Result<Vip, String> {
    let (rest, protocol) = match text.rsplit_once('/') {
        None => (text, None),
        Some((rest, "tcp")) => (rest, Some(Protocol::Tcp)),
        Some((rest, "udp")) => (rest, Some(Protocol::Udp)),
        Some((_, other)) => {
            return Err(format!("`{other}` is not a protocol; write /tcp or /udp"));
        }
    };
    // 2001:db8::1:443 is an address as a whole; guessing that its end is a port would serve a wrong VIP.
    if let Ok(whole) = rest.parse::<IpAddr>() {
        return Err(match whole {
            IpAddr::V4(ip) => {
                format!("`{text}` has no port; write {ip}:80, or {ip}:* for every port")
            }
            IpAddr::V6(ip) => {
                format!("`{text}` has no port; write [{ip}]:80, or [{ip}]:* for every port")
            }
        });
    }
    let (address, port) = rest.rsplit_once(':').ok_or_else(|| {
        format!("`{text}` is not VIP:PORT; write for example 203.0.113.10:80/tcp or [2001:db8::1]:443/tcp")
    })?;
    let port = match port {
        "*" => 0,
        number => match number.parse() {
            Ok(0) | Err(_) => {
                return Err(format!(
                    "`{number}` is not a port; write 1 to 65535, or * for every port"
                ));
            }
            Ok(port) => port,
        },
    };
    Ok(Vip {
        address: ip(address)?,
        port,
        protocol,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_and_without_brackets() {
        for text in ["2001:db8::11", "[2001:db8::11]", "2001:DB8:0:0::11"] {
            assert_eq!(ip(text).unwrap().to_string(), "2001:db8::11", "{text}");
        }
        assert_eq!(ip("10.0.0.11").unwrap().to_string(), "10.0.0.11");
        for text in ["", "10.0.0", "[10.0.0.1", "10.0.0.1:80", "web"] {
            assert!(
                ip(text).unwrap_err().contains("is not an IP address"),
                "{text}"
            );
        }
    }

    #[test]
    fn weights_follow_an_equals_sign() {
        let parsed = |text| ip_with_weight(text).map(|(ip, weight)| (ip.to_string(), weight));
        assert_eq!(parsed("10.0.0.11"), Ok(("10.0.0.11".to_owned(), None)));
        assert_eq!(
            parsed("[2001:db8::1]=3"),
            Ok(("2001:db8::1".to_owned(), Some(3)))
        );
        assert_eq!(
            parsed("2001:db8::1=0"),
            Ok(("2001:db8::1".to_owned(), Some(0)))
        );
        assert!(
            parsed("10.0.0.11=heavy")
                .unwrap_err()
                .contains("not a weight")
        );
    }

    #[test]
    fn vips_of_every_form() {
        let cases = [
            (
                "203.0.113.10:80/tcp",
                "203.0.113.10:80",
                Some(Protocol::Tcp),
            ),
            ("203.0.113.10:*", "203.0.113.10:*", None),
            (
                "[2001:db8::1]:443/udp",
                "[2001:db8::1]:443",
                Some(Protocol::Udp),
            ),
            ("2001:db8::1:*/udp", "[2001:db8::1]:*", Some(Protocol::Udp)),
            ("2001:db8:0:0:0:0:0:1:443", "[2001:db8::1]:443", None),
        ];
        for (text, config_text, protocol) in cases {
            let vip = vip(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(vip.config_text(), config_text, "{text}");
            assert_eq!(vip.protocol, protocol, "{text}");
        }
    }

    #[test]
    fn what_is_no_vip_says_how_to_write_one() {
        let cases = [
            ("203.0.113.10", "write 203.0.113.10:80"),
            ("2001:db8::1:443/tcp", "write [2001:db8::1:443]:80"),
            ("203.0.113.10:0", "write 1 to 65535"),
            ("203.0.113.10:80/sctp", "write /tcp or /udp"),
            ("web:80", "is not an IP address"),
            ("web", "is not VIP:PORT"),
        ];
        for (text, expected) in cases {
            let error = vip(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
