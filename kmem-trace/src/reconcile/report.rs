//! What a run has to say, computed once: the view only formats it.

use serde::Serialize;

use super::{breakdown::Breakdown, usage::Reconciled};

/// Three kinds of loss, counted apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Records that found the ring full. Totals are not touched by it.
    pub ring: u64,
    /// Charges that found the totals map full, or could not be read.
    pub map_full: u64,
    /// Runs of programs that the kernel skipped, as far as it counts them.
    pub skipped: u64,
}

impl Lost {
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// A page counter beside `memory`, reconciled like it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CounterReport {
    /// `kmem`, `memsw`, `swap` or `tcpmem`.
    pub counter: &'static str,
    pub usage_bytes: u64,
    pub ledger_bytes: i64,
    pub residual_bytes: i64,
    pub bound_bytes: u64,
}

impl CounterReport {
    pub fn new(counter: &'static str, reconciled: &Reconciled) -> Self {
        Self {
            counter,
            usage_bytes: reconciled.kernel_bytes,
            ledger_bytes: reconciled.ledger_bytes,
            residual_bytes: reconciled.residual_bytes,
            bound_bytes: reconciled.bound.total_bytes(),
        }
    }

    pub fn holds(&self) -> bool {
        self.residual_bytes.unsigned_abs() <= self.bound_bytes
    }
}

/// What the bound is made of, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BoundTerms {
    pub skew: u64,
    pub in_flight: u64,
    pub stock: u64,
    pub base: u64,
    pub lost: u64,
}

/// One cgroup at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub elapsed_s: f64,
    /// Path below the hierarchy's root; bytes that are no text are escaped.
    pub cgroup: String,
    pub cgroup_id: u64,
    /// Cgroups below it that live, and that are dead but were charged.
    pub descendants: usize,
    pub dead_descendants: usize,
    pub usage_bytes: u64,
    pub ledger_bytes: i64,
    pub residual_bytes: i64,
    pub bound_bytes: u64,
    pub bound_terms: BoundTerms,
    pub kmem_bytes: Option<u64>,
    pub counters: Vec<CounterReport>,
    pub breakdown: Breakdown,
    /// Pages charged and uncharged since the start, in bytes.
    pub charged_bytes: u64,
    pub uncharged_bytes: u64,
    /// Calls of the user charge path since the start; `None` where they are not seen.
    pub user_charges: Option<u64>,
    pub user_refusals: Option<u64>,
    /// What the streamed records alone say moved, and what the kernel-side totals say, in bytes.
    /// They differ by what is still in the ring, and by `lost.ring`.
    pub streamed_bytes: Option<i64>,
    pub totals_bytes: i64,
    pub lost: Lost,
    /// Of this report's figures, which are lower bounds or not visible, and why.
    pub limits: Vec<String>,
}

impl Report {
    /// Whether every figure is within its bound.
    pub fn holds(&self) -> bool {
        self.residual_bytes.unsigned_abs() <= self.bound_bytes
            && self.counters.iter().all(CounterReport::holds)
    }
}

/// What the tracer itself costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SelfCost {
    /// Time in our BPF programs; `None` unless the kernel's BPF statistics were on.
    pub bpf_run_ns: Option<u64>,
    pub bpf_runs: Option<u64>,
    /// CPU time of the tracer's process, seconds.
    pub cpu_s: f64,
    pub rss_bytes: u64,
}

/// Do the streamed records and the kernel-side totals say the same?
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StreamCheck {
    pub records: u64,
    /// Cgroups and counters whose streamed sum is not the total.
    pub differences: usize,
    /// `true`: equal in every cgroup and counter.
    pub agrees: bool,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    #[serde(flatten)]
    pub report: Report,
    /// Plain sentences.
    pub verdict: Vec<String>,
    pub stream: Option<StreamCheck>,
    #[serde(rename = "self")]
    pub own: SelfCost,
}

/// Slab of one cache, cause and call site.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlabLine {
    pub cgroup: String,
    pub cache: String,
    /// `charged`, or why not.
    pub cause: &'static str,
    /// The function that asked; of charged rows, the one that asked for most.
    pub call_site: Option<String>,
    /// Came less went, since the trace began.
    pub objects: i64,
    pub bytes: i64,
    pub allocated_bytes: u64,
    pub freed_bytes: u64,
    /// Our change in live objects of this cache, over all cgroups, by the kernel's; for caches
    /// that moved by more than 1 MiB.
    pub coverage: Option<f64>,
}

/// Charged to one cgroup, asked for by a task of another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WrongPayerLine {
    pub payer: String,
    pub asker: String,
    pub cache: String,
    pub call_site: String,
    pub allocated_bytes: u64,
}

/// The node's slab since the trace began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeLine {
    /// Change of `Slab` in `/proc/meminfo`.
    pub slab_delta_bytes: i64,
    /// Charged to the traced subtrees.
    pub charged_bytes: i64,
    /// Asked for by them, charged to nobody.
    pub not_charged_bytes: i64,
    /// Other cgroups, the root, interrupts over other tasks.
    pub other_cgroups_bytes: i64,
    /// Change of slab pages that hold no object.
    pub overhead_bytes: i64,
    pub residual_bytes: i64,
}

/// Where the slab went.
#[derive(Clone, Debug, PartialEq)]
pub struct SlabReport {
    /// Most bytes first, charged before not charged.
    pub lines: Vec<SlabLine>,
    pub wrong_payers: Vec<WrongPayerLine>,
    pub node: NodeLine,
    /// Events that found the map of sums full.
    pub lost_keys: u64,
    /// Objects without a payer that could not be remembered.
    pub lost_objects: u64,
    /// Objects whose slab page named another cache than the event.
    pub misread: u64,
}
