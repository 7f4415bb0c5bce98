//! Runs frames through the data path: natively, and in the kernel by BPF_PROG_TEST_RUN. Both say the same kind of thing, so that
//! they can be compared with `==`.

use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context as _, Result, bail};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use lb_common::abi::BackendCounters;
use lb_common::native::{MemoryFrame, MemoryTables};
use lb_common::process::{Tables as _, Verdict, process};
use lb_common::reason::{Fate, Reason};
use lb_userspace::dataplane::DataPlane as _;
use lb_userspace::dataplane::kernel::KernelDataPlane;
use lb_userspace::dataplane::memory::MemoryDataPlane;
use lb_userspace::dataplane::objects;

use crate::world::{self, BACKENDS, CAPACITY, INGRESS, SEED};

/// What an XDP program returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Drop,
    Pass,
    Tx,
    Redirect,
}

/// Everything a frame did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub action: Action,
    pub bytes: Vec<u8>,
    /// Reason counters that moved, and by how much.
    pub reasons: Vec<(Reason, u64)>,
    /// Backend counters that moved, and by how much.
    pub backends: Vec<(u32, BackendCounters)>,
}

impl Outcome {
    pub const fn forwarded(&self) -> bool {
        matches!(self.action, Action::Tx | Action::Redirect)
    }
}

/// A way to run frames.
pub trait Run {
    /// Runs one frame.
    fn run(&mut self, frame: &[u8]) -> Result<Outcome>;
    /// Shorter frames cannot be run.
    fn shortest(&self) -> usize;
}

/// Index of the second interface, set by `main` once it has made one.
pub static OTHER: OnceLock<u32> = OnceLock::new();

/// The interface that the world's routes with [`world::Via::Other`] name.
pub fn other() -> u32 {
    *OTHER.get().unwrap_or(&2)
}

/// lb-common over plain memory.
pub struct Native {
    plane: MemoryDataPlane,
}

impl Native {
    pub fn new() -> Result<Self> {
        let buckets = CAPACITY.services * 32;
        let tables = MemoryTables::new(SEED, buckets, CAPACITY.slots, CAPACITY.backends + 1);
        let mut plane = MemoryDataPlane::new(tables);
        for operation in world::operations(other()) {
            plane.apply(&operation)?;
        }
        Ok(Self { plane })
    }
}

impl Run for Native {
    fn run(&mut self, frame: &[u8]) -> Result<Outcome> {
        let before = backend_counters(|id| self.plane.backend_counters(id));
        let mut frame = MemoryFrame::new(frame, INGRESS);
        let verdict = process(&mut frame, &self.plane.tables);
        // What the kernel's entry point does with the verdict.
        let (action, reason) = match verdict {
            Verdict::Forward(forwarded) => {
                let action = match forwarded.ifindex {
                    INGRESS => Some(Action::Tx),
                    ifindex if ifindex == other() => Some(Action::Redirect),
                    _ => None,
                };
                if action.is_some() {
                    self.plane.tables.count(&forwarded);
                }
                action.map_or((Action::Drop, Some(Reason::Egress)), |action| {
                    (action, None)
                })
            }
            Verdict::Refuse(reason) => match reason.fate() {
                Fate::Pass => (Action::Pass, Some(reason)),
                Fate::Drop => (Action::Drop, Some(reason)),
                Fate::Reply => (Action::Tx, Some(reason)),
            },
        };
        let after = backend_counters(|id| self.plane.backend_counters(id));
        Ok(Outcome {
            action,
            bytes: frame.bytes(),
            reasons: reason.map(|reason| (reason, 1)).into_iter().collect(),
            backends: moved(&before, &after),
        })
    }

    fn shortest(&self) -> usize {
        0
    }
}

/// The object in the kernel.
pub struct Kernel {
    plane: KernelDataPlane,
    /// The interface that frames come in by.
    ingress: u32,
}

static KERNEL: LazyLock<Result<Mutex<Kernel>, String>> = LazyLock::new(|| {
    Kernel::load()
        .map(Mutex::new)
        .map_err(|error| format!("{error:#}"))
});

impl Kernel {
    /// The one loaded object; counters are read before and after each frame, so only one test at a time may have it.
    pub fn get() -> Result<MutexGuard<'static, Self>> {
        match &*KERNEL {
            // A test that failed while it held the lock broke nothing: the world never changes.
            Ok(kernel) => Ok(kernel.lock().unwrap_or_else(PoisonError::into_inner)),
            Err(error) => bail!("{error}"),
        }
    }

    fn load() -> Result<Self> {
        let mut plane = KernelDataPlane::load(objects::BALANCER, SEED, &CAPACITY)?;
        for operation in world::operations(other()) {
            plane.apply(&operation)?;
        }
        Ok(Self {
            plane,
            ingress: INGRESS,
        })
    }

    /// Runs one frame that comes in by another interface than loopback.
    pub fn run_from(&mut self, ingress: u32, frame: &[u8]) -> Result<Outcome> {
        self.ingress = ingress;
        let outcome = self.run(frame);
        self.ingress = INGRESS;
        outcome
    }

    pub fn plane(&mut self) -> &mut KernelDataPlane {
        &mut self.plane
    }

    fn reasons(&self) -> Vec<u64> {
        Reason::ALL
            .iter()
            .map(|reason| self.plane.reason_counter(*reason))
            .collect()
    }
}

impl Run for Kernel {
    fn run(&mut self, frame: &[u8]) -> Result<Outcome> {
        let backends = backend_counters(|id| self.plane.backend_counters(id));
        let reasons = self.reasons();
        let (action, bytes) = test_run(self.plane.program(), frame, self.ingress)?;
        let backends = moved(
            &backends,
            &backend_counters(|id| self.plane.backend_counters(id)),
        );
        let reasons = Reason::ALL.iter().zip(reasons).zip(self.reasons());
        let reasons = reasons.filter(|((_, before), after)| before != after);
        let reasons = reasons
            .map(|((reason, before), after)| (*reason, after - before))
            .collect();
        Ok(Outcome {
            action,
            bytes,
            reasons,
            backends,
        })
    }

    /// BPF_PROG_TEST_RUN wants an Ethernet header (net/bpf/test_run.c, bpf_test_init).
    fn shortest(&self) -> usize {
        14
    }
}

/// Runs an XDP program once on one frame, which comes in by this interface.
pub fn test_run(program: &Xdp, frame: &[u8], ingress: u32) -> Result<(Action, Vec<u8>)> {
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, frame.len() as u32, 0, ingress, 0, 0]
        .map(u32::to_ne_bytes)
        .concat();
    let mut out = vec![0; 4_096];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        ..TestRunOptions::default()
    };
    let result = program
        .test_run(options)
        .with_context(|| format!("BPF_PROG_TEST_RUN on {} bytes", frame.len()))?;
    out.truncate(result.data_size_out as usize);
    // enum xdp_action of linux/bpf.h.
    let action = match result.return_value {
        1 => Action::Drop,
        2 => Action::Pass,
        3 => Action::Tx,
        4 => Action::Redirect,
        other => bail!("the program returned {other}, which is no verdict of ours"),
    };
    Ok((action, out))
}

fn backend_counters(read: impl Fn(u32) -> BackendCounters) -> Vec<BackendCounters> {
    BACKENDS.iter().map(|backend| read(backend.id)).collect()
}

fn moved(before: &[BackendCounters], after: &[BackendCounters]) -> Vec<(u32, BackendCounters)> {
    let all = BACKENDS.iter().zip(before.iter().zip(after));
    let moved = all.filter(|(_, (before, after))| before != after);
    moved
        .map(|(backend, (before, after))| {
            let difference = BackendCounters {
                packets: after.packets - before.packets,
                bytes: after.bytes - before.bytes,
                flows: after.flows - before.flows,
                ..BackendCounters::default()
            };
            (backend.id, difference)
        })
        .collect()
}
