//! What became of a packet that was not forwarded, and why. One list: counters, metrics and `status` all read it.

/// What happens to a packet that is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// Handed untouched to this host's network stack.
    Pass,
    Drop,
    /// Answered: the frame goes back where it came from, as the answer.
    Reply,
}

impl Fate {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Reply => "reply",
        }
    }
}

macro_rules! reasons {
    ($($number:literal $variant:ident $fate:ident $name:literal $help:literal)*) => {
        /// The reason of a verdict other than "forward". Its number indexes the counters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Reason {
            $(#[doc = $help] $variant = $number,)*
        }

        impl Reason {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            pub const fn fate(self) -> Fate {
                match self { $(Self::$variant => Fate::$fate,)* }
            }

            /// As in the `reason` label of `sluice_packets_total`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One sentence for an operator.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

reasons! {
    0 NotIp Pass "not-ip" "Neither IPv4 nor IPv6 (ARP, LLDP, …)."
    1 ShortFrame Pass "short-frame" "Too short to hold an Ethernet and an IP header."
    2 VlanDepth Pass "vlan-depth" "More than two VLAN tags."
    3 NotOurs Pass "not-ours" "No service has this address, port and protocol."
    4 IcmpToVip Pass "icmp-to-vip" "ICMP to a VIP, neither answered nor about a flow of a service: handed to the host's stack."
    5 Truncated Drop "truncated" "To a VIP, but shorter than its headers say."
    6 BadHeader Drop "bad-header" "To a VIP, with an IP, TCP or UDP header that contradicts itself."
    7 Fragment Drop "fragment" "A fragment to a VIP: without the transport header its flow is unknown."
    8 ExtensionHeaders Drop "extension-headers" "To a VIP, with more IPv6 extension headers than are followed."
    9 NoBackend Drop "no-backend" "The service has never had an eligible backend, or has none and says on_empty = \"drop\"."
    10 BackendGone Drop "backend-gone" "The slot names a backend that is not this service's (should never happen)."
    11 NoRoute Drop "no-route" "The backend has no next hop."
    12 TooBig Drop "too-big" "With the outer header it would not fit the egress MTU."
    13 Headroom Drop "headroom" "The driver left no room in front of the packet for the outer header."
    14 Egress Drop "egress" "The egress interface is not in the device map."
    15 ServiceTable Drop "service-table" "The lookup table of the service is out of bounds (should never happen)."
    16 Settling Drop "settling" "Opens a connection that could not be remembered while its slot settles; the client sends it again."
    17 IcmpEcho Reply "icmp-echo" "An ICMP echo request (ping) to a VIP, answered."
    18 IcmpEchoOff Drop "icmp-echo-off" "An ICMP echo request (ping) to a VIP, and icmp_echo = \"drop\"."
}

/// Room for reasons in the counter map.
pub const REASONS: u32 = 64;

const _: () = assert!(Reason::ALL.len() <= REASONS as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn numbers_are_dense_and_names_unique() {
        let names: HashSet<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
        }
    }
}
