//! Grace periods: waiting until no CPU can still be using what it read before.
//!
//! XDP programs run inside RCU read-side critical sections (NAPI polls with bottom halves disabled), so after a
//! `synchronize_rcu()` every packet that saw an older table has been decided. `membarrier(MEMBARRIER_CMD_GLOBAL)` is that call
//! (kernel/sched/membarrier.c), without a map, a program or a privilege. See docs/decisions/0004-grace-period.md.

use std::io;

use anyhow::{Context as _, Result};

/// MEMBARRIER_CMD_GLOBAL of linux/membarrier.h.
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// Waits for one grace period (some 5–50 ms).
///
/// # Errors
/// On kernels without membarrier, and on those booted with `nohz_full`, where the kernel refuses it.
pub fn wait() -> Result<()> {
    // SAFETY: membarrier takes three integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
        .context("the kernel refuses membarrier(GLOBAL), without which tables cannot be changed safely (booted with nohz_full?)")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_grants_grace_periods() {
        super::wait().expect("membarrier");
    }
}
