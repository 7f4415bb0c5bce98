//! The interfaces that carry VIP traffic: there, up, Ethernet, and able to run XDP.

use super::Finding;
use crate::model::XdpMode;
use crate::netlink::Interface;

/// Drivers with native XDP in mainline kernels, as ethtool names them. A driver that is not listed may have learned
/// it since: that costs a warning, no more.
const NATIVE: [&str; 42] = [
    "am65-cpsw-nuss",
    "atlantic",
    "bnxt_en",
    "bonding",
    "cpsw",
    "dpaa2-eth",
    "ena",
    "fec",
    "fsl_dpa",
    "fsl_dpaa2_eth",
    "fsl_enetc",
    "fsl_enetc_vf",
    "funeth",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "idpf",
    "igb",
    "igc",
    "ionic",
    "ixgbe",
    "ixgbevf",
    "lan966x-switch",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mtk_soc_eth",
    "mvneta",
    "mvpp2",
    "nfp",
    "qede",
    "rvu-nicpf",
    "rvu-nicvf",
    "sfc",
    "st_gmac",
    "stmmaceth",
    "thunder-nicvf",
    "tun",
    "veth",
    "virtio_net",
    "vmxnet3",
];
/// Interfaces stacked on another one: XDP belongs on the one below.
const STACKED: [&str; 6] = [
    "802.1Q VLAN Support",
    "bridge",
    "dummy",
    "ipvlan",
    "macvlan",
    "team",
];
/// IPv6 asks this of every link (RFC 8200).
const MTU_LEAST: u32 = 1_280;
/// Above this a frame does not fit a page together with the room XDP needs, and most drivers refuse to attach.
const MTU_ONE_PAGE: u32 = 3_498;

/// Findings about one interface of `node.interfaces`; `interface` is `None` when the host has none of that name.
pub fn judge(
    name: &str,
    interface: Option<&Interface>,
    present: &[Interface],
    mode: XdpMode,
) -> Vec<Finding> {
    let Some(interface) = interface else {
        let names: Vec<_> = present
            .iter()
            .filter(|other| !other.loopback)
            .map(|other| other.name.as_str())
            .collect();
        let names = if names.is_empty() {
            "none but loopback".into()
        } else {
            names.join(", ")
        };
        return vec![Finding::error(
            name,
            "this host has no such interface",
            format!("name in node.interfaces one that it has ({names}), or create {name} first"),
        )];
    };
    let mut findings = vec![state(interface)];
    if interface.mac.is_some() && !interface.loopback {
        findings.push(driver(interface, mode));
    }
    findings.extend(mtu(interface, mode));
    if interface.lro {
        findings.push(Finding::warning(
            format!("{name}: offloads"),
            "large receive offload merges packets before XDP sees them; they could not be forwarded as they came",
            format!("ethtool -K {name} lro off"),
        ));
    }
    findings
}

fn state(interface: &Interface) -> Finding {
    let name = &interface.name;
    if interface.mac.is_none() || interface.loopback {
        return Finding::error(
            name,
            "is not an Ethernet interface: Sluice forwards Ethernet frames",
            "name the physical (or veth) interface in node.interfaces",
        );
    }
    if !interface.up {
        return Finding::error(name, "is down", format!("ip link set {name} up"));
    }
    if !interface.carrier {
        return Finding::warning(
            name,
            "has no carrier",
            "look at the cable, the switch port, or the other end of the pair",
        );
    }
    Finding::ok(name, format!("up, mtu {}", interface.mtu))
}

fn driver(interface: &Interface, mode: XdpMode) -> Finding {
    let what = format!("{}: driver", interface.name);
    let Some(driver) = interface.driver.as_deref() else {
        return Finding::warning(
            what,
            "does not tell its name",
            "look at `xdp_mode` in `sluice status` once it runs",
        );
    };
    if mode == XdpMode::Generic {
        return Finding::ok(what, format!("{driver}; generic XDP is asked for"));
    }
    match driver {
        "veth" => Finding::ok(
            what,
            "veth runs XDP natively (its peer needs an XDP program as well, or transmitted frames are lost)",
        ),
        driver if NATIVE.contains(&driver) => {
            Finding::ok(what, format!("{driver} runs XDP natively"))
        }
        driver => {
            let mend = if STACKED.contains(&driver) {
                "name the interface below it in node.interfaces: VLAN tags are understood there"
            } else {
                "use a NIC whose driver runs XDP natively, or accept it with xdp_mode = \"generic\""
            };
            let found = format!("{driver} is not known to run XDP natively");
            if mode == XdpMode::Native {
                Finding::error(
                    what,
                    format!("{found}, and xdp_mode = \"native\" asks for it"),
                    mend,
                )
            } else {
                Finding::warning(
                    what,
                    format!("{found}; the generic mode works but is several times slower"),
                    mend,
                )
            }
        }
    }
}

fn mtu(interface: &Interface, mode: XdpMode) -> Option<Finding> {
    let Interface { name, mtu, .. } = interface;
    let what = format!("{name}: mtu");
    if *mtu < MTU_LEAST {
        return Some(Finding::error(
            what,
            format!("{mtu} is less than the {MTU_LEAST} that IPv6 asks of every link"),
            format!("ip link set {name} mtu 1500"),
        ));
    }
    let page_bound = mode != XdpMode::Generic && interface.driver.as_deref() != Some("veth");
    (*mtu > MTU_ONE_PAGE && page_bound).then(|| {
        Finding::warning(
            what,
            format!("{mtu}: most drivers refuse native XDP above about {MTU_ONE_PAGE}, where a frame leaves its page"),
            format!("ip link set {name} mtu {MTU_ONE_PAGE}   (or xdp_mode = \"generic\")"),
        )
    })
}

/// The reverse-path filter in force on an interface, 0 off, 1 strict, 2 loose.
///
/// What XDP forwards never meets the filter. What does: the backends' answers to this host's own probes. With one
/// interface they come back the way the probes went; with several they may not, and strict filtering then drops
/// them silently and every backend looks dead.
pub fn rp_filter(name: &str, mode: u8, interfaces: usize) -> Option<Finding> {
    (mode == 1 && interfaces > 1).then(|| {
        Finding::warning(
            format!("{name}: rp_filter"),
            "strict: answers to health probes that come in by another interface than the route goes out are dropped \
             (traffic to VIPs is not concerned)",
            format!("sysctl -w net.ipv4.conf.{}.rp_filter=2", name.replace('.', "/")),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Severity;

    fn eth0() -> Interface {
        Interface {
            ifindex: 2,
            name: "eth0".into(),
            mtu: 1500,
            mac: Some([2, 0, 0, 0, 0, 1]),
            up: true,
            carrier: true,
            loopback: false,
            addresses: vec![],
            driver: Some("ixgbe".into()),
            lro: false,
        }
    }

    /// The one finding that is not Ok.
    fn complaint(interface: &Interface, mode: XdpMode) -> Finding {
        let mut findings = judge("eth0", Some(interface), &[], mode);
        findings.retain(|finding| finding.severity > Severity::Ok);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(!findings[0].mend.is_empty());
        findings.remove(0)
    }

    #[test]
    fn a_good_interface_has_no_complaints() {
        let findings = judge("eth0", Some(&eth0()), &[], XdpMode::Auto);
        assert!(
            findings
                .iter()
                .all(|f| f.severity == Severity::Ok && f.mend.is_empty()),
            "{findings:?}"
        );
    }

    #[test]
    fn a_missing_one_names_those_that_exist() {
        let finding = judge("eth7", None, &[eth0()], XdpMode::Auto).remove(0);
        assert_eq!(finding.severity, Severity::Error);
        assert!(finding.mend.contains("(eth0)"), "{finding:?}");
    }

    #[test]
    fn each_fault_has_its_mend() {
        let finding = complaint(
            &Interface {
                up: false,
                ..eth0()
            },
            XdpMode::Auto,
        );
        assert_eq!(
            (finding.severity, finding.mend.as_str()),
            (Severity::Error, "ip link set eth0 up")
        );
        assert_eq!(
            complaint(
                &Interface {
                    carrier: false,
                    ..eth0()
                },
                XdpMode::Auto
            )
            .severity,
            Severity::Warning
        );
        assert_eq!(
            complaint(
                &Interface {
                    mac: None,
                    ..eth0()
                },
                XdpMode::Auto
            )
            .severity,
            Severity::Error
        );
        assert_eq!(
            complaint(
                &Interface {
                    lro: true,
                    ..eth0()
                },
                XdpMode::Auto
            )
            .mend,
            "ethtool -K eth0 lro off"
        );
        assert_eq!(
            complaint(
                &Interface {
                    mtu: 1000,
                    ..eth0()
                },
                XdpMode::Auto
            )
            .severity,
            Severity::Error
        );
        assert_eq!(
            complaint(
                &Interface {
                    mtu: 9000,
                    ..eth0()
                },
                XdpMode::Auto
            )
            .severity,
            Severity::Warning
        );
    }

    #[test]
    fn an_unknown_driver_is_an_error_only_if_native_is_demanded() {
        let other = Interface {
            driver: Some("r8169".into()),
            ..eth0()
        };
        assert_eq!(complaint(&other, XdpMode::Auto).severity, Severity::Warning);
        assert_eq!(complaint(&other, XdpMode::Native).severity, Severity::Error);
        let findings = judge("eth0", Some(&other), &[], XdpMode::Generic);
        assert!(
            findings
                .iter()
                .all(|finding| finding.severity == Severity::Ok),
            "{findings:?}"
        );
        let vlan = Interface {
            driver: Some("802.1Q VLAN Support".into()),
            ..eth0()
        };
        assert!(complaint(&vlan, XdpMode::Auto).mend.contains("below"));
    }

    #[test]
    fn strict_reverse_path_filtering_matters_with_several_interfaces() {
        assert_eq!(rp_filter("eth0", 1, 1), None);
        assert_eq!(rp_filter("eth0", 2, 2), None);
        assert_eq!(
            rp_filter("eth0.5", 1, 2).unwrap().mend,
            "sysctl -w net.ipv4.conf.eth0/5.rp_filter=2"
        );
    }

    #[test]
    fn the_list_of_drivers_is_sorted() {
        assert!(NATIVE.is_sorted());
    }
}
