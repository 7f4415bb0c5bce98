//! The host itself: kernel, permissions, bpffs, JIT, the fleet's seed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};

use super::Finding;
use crate::model::NodeSpec;

/// The running kernel's release, for example `6.1.0-18-amd64`.
pub fn release() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The capabilities this process can use.
pub fn effective() -> HashSet<Capability> {
    caps::read(None, CapSet::Effective).unwrap_or_default()
}

pub fn kernel(release: &str) -> Finding {
    let what = "kernel";
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let why = "Sluice needs 5.12 (compare-and-swap in BPF; XDP links that outlive the daemon came with 5.9)";
    let mend = "boot a kernel of 5.15 or later; Debian 12 brings 6.1";
    match version {
        (0, 0) => Finding::warning(
            what,
            format!("version `{release}` is not understood; {why}"),
            mend,
        ),
        old if old < (5, 12) => Finding::error(what, format!("{release}: {why}"), mend),
        old if old < (5, 15) => Finding::warning(
            what,
            format!("{release} should do, but nothing before 5.15 is tested"),
            mend,
        ),
        _ => Finding::ok(what, release),
    }
}

pub fn capabilities(effective: &HashSet<Capability>) -> Finding {
    // CAP_SYS_ADMIN contains what CAP_BPF and CAP_PERFMON were split from.
    let admin = effective.contains(&Capability::CAP_SYS_ADMIN);
    let needed = [
        (Capability::CAP_BPF, admin, "load programs and maps"),
        (
            Capability::CAP_PERFMON,
            admin,
            "let the program read packets through pointers",
        ),
        (
            Capability::CAP_NET_ADMIN,
            false,
            "attach XDP and ask for neighbours",
        ),
    ];
    let missing: Vec<String> = needed
        .into_iter()
        .filter(|(capability, implied, _)| !implied && !effective.contains(capability))
        .map(|(capability, _, why)| format!("{capability} (to {why})"))
        .collect();
    if missing.is_empty() {
        return Finding::ok("permissions", "this process may load and attach programs");
    }
    Finding::error(
        "permissions",
        format!("missing {}", missing.join(", ")),
        "run it as root, or give the service AmbientCapabilities=CAP_BPF CAP_NET_ADMIN CAP_PERFMON",
    )
}

/// `mounts` is the text of /proc/self/mounts.
pub fn bpffs(mounts: &str, pin: &Path) -> Finding {
    let what = "bpffs";
    let mounted = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let point = PathBuf::from(fields.next()?.replace("\\040", " "));
            Some((point, fields.next()?))
        })
        .filter(|(point, _)| pin.starts_with(point));
    // The deepest mount point above the directory holds it; of equals, the one mounted last.
    let holder = mounted.max_by_key(|(point, _)| point.components().count());
    match holder {
        Some((point, "bpf")) => Finding::ok(what, format!("mounted on {}", point.display())),
        holder => {
            let usual = Path::new("/sys/fs/bpf");
            let point = if pin.starts_with(usual) {
                usual
            } else {
                pin.parent().unwrap_or(pin)
            };
            let held = holder.map_or_else(String::new, |(_, kind)| format!(" (it is on {kind})"));
            Finding::error(
                what,
                format!(
                    "{} is not in a BPF file system{held}: nothing can be pinned there",
                    pin.display()
                ),
                format!(
                    "mount -t bpf bpf {}   (`ip netns exec` hides it: use `nsenter --net=/run/netns/NAME` instead)",
                    point.display()
                ),
            )
        }
    }
}

/// `setting` is net.core.bpf_jit_enable; kernels that always compile do not show it everywhere.
pub fn jit(setting: Option<&str>) -> Option<Finding> {
    (setting?.trim() == "0").then(|| {
        Finding::warning(
            "BPF compiler",
            "net.core.bpf_jit_enable is 0: programs are interpreted, at a tenth of the speed",
            "sysctl -w net.core.bpf_jit_enable=1",
        )
    })
}

/// `outcome` of asking the kernel for a grace period, without which no table can be changed.
pub fn grace_periods(outcome: anyhow::Result<()>) -> Finding {
    let what = "grace periods";
    match outcome {
        Ok(()) => Finding::ok(what, "the kernel grants them"),
        Err(error) => Finding::error(
            what,
            format!("{error:#}"),
            "boot without nohz_full= on the kernel's command line",
        ),
    }
}

pub fn hash_seed(node: &NodeSpec) -> Finding {
    Finding::ok(
        "hash seed",
        match &node.hash_seed {
            Some(_) => "set in the configuration".to_owned(),
            None => format!(
                "this node makes its own and keeps it in {}; balancers that share VIPs must all have the same \
                 node.hash_seed",
                node.state.display()
            ),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Severity;

    #[test]
    fn kernels_are_told_apart_by_number_not_by_text() {
        for (release, severity) in [
            ("5.8.18", Severity::Error),
            ("4.19.0-25-amd64", Severity::Error),
            ("5.10.0-28-amd64", Severity::Error),
            ("5.13.0", Severity::Warning),
            ("5.15.0", Severity::Ok),
            ("6.1.0-18-amd64", Severity::Ok),
            ("10.0-rc1", Severity::Ok),
            ("strange", Severity::Warning),
        ] {
            let finding = kernel(release);
            assert_eq!(finding.severity, severity, "{release}: {finding:?}");
            assert_eq!(finding.mend.is_empty(), severity == Severity::Ok);
        }
    }

    #[test]
    fn sys_admin_stands_for_bpf_and_perfmon_but_not_for_net_admin() {
        use Capability::{CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN};
        let judge = |set: &[Capability]| capabilities(&set.iter().copied().collect());
        assert_eq!(
            judge(&[CAP_SYS_ADMIN, CAP_NET_ADMIN]).severity,
            Severity::Ok
        );
        assert_eq!(
            judge(&[CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN]).severity,
            Severity::Ok
        );
        let finding = judge(&[CAP_SYS_ADMIN]);
        assert_eq!(finding.severity, Severity::Error);
        assert!(
            finding.found.contains("CAP_NET_ADMIN") && !finding.found.contains("CAP_BPF"),
            "{finding:?}"
        );
    }

    #[test]
    fn the_deepest_mount_counts() {
        let pin = Path::new("/sys/fs/bpf/sluice");
        let sysfs = "sysfs /sys sysfs rw 0 0\n";
        let finding = bpffs(sysfs, pin);
        assert_eq!(finding.severity, Severity::Error);
        assert!(finding.found.contains("sysfs"), "{finding:?}");
        assert!(
            finding.mend.starts_with("mount -t bpf bpf /sys/fs/bpf "),
            "{finding:?}"
        );
        assert_eq!(
            bpffs(&format!("bpf /sys/fs/bpf bpf rw 0 0\n{sysfs}"), pin).severity,
            Severity::Ok
        );
        let other = bpffs(
            &format!("bpf /sys/fs/bpf bpf rw 0 0\n{sysfs}"),
            Path::new("/run/sluice/bpf/pins"),
        );
        assert!(
            other.mend.starts_with("mount -t bpf bpf /run/sluice/bpf "),
            "{other:?}"
        );
    }

    #[test]
    fn an_interpreted_program_is_worth_a_warning() {
        assert_eq!(jit(None), None);
        assert_eq!(jit(Some("1\n")), None);
        assert_eq!(jit(Some("0\n")).unwrap().severity, Severity::Warning);
    }
}
