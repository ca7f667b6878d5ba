//! What a run has to say, computed once: the view only formats it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{breakdown::Breakdown, usage::Reconciled};

/// Kinds of loss, counted apart: of the ledger, and of what is streamed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Records that found the ring full. Totals are not touched by it.
    pub ring: u64,
    /// Charges that found the totals map full, or could not be read.
    pub map_full: u64,
    /// Runs of the ledger's programs that the kernel skipped, as far as it counts them.
    pub skipped: u64,
    /// Softirqs in which the kernel ran no program at all, and the pages that they moved at most:
    /// as many each as the busiest of their vector that was seen. `None` where softirqs are not watched
    /// or not looked at twice yet.
    pub unwatched_softirqs: Option<u64>,
    pub unwatched_pages: Option<u64>,
    /// Which roles lost them, and runs skipped of roles beside the ledger; roles that lost nothing
    /// are left out. Of slab roles only records are here, the rest is in [`super::slab::SlabLost`].
    pub by_role: BTreeMap<&'static str, RoleLost>,
}

/// What one role lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RoleLost {
    pub ring: u64,
    pub map_full: u64,
    pub skipped: u64,
}

impl Lost {
    /// Nothing that is known.
    pub fn is_nothing(&self) -> bool {
        let counted = self.ring + self.map_full + self.skipped;
        counted == 0 && self.unwatched_softirqs.is_none_or(|it| it == 0) && self.by_role.is_empty()
    }
}

/// Whether what a role loses is missing from the ledger.
pub fn is_ledger(role: &str) -> bool {
    role.starts_with("counter.") || role == "memcg.state"
}

/// How something unexplained fits its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    Within,
    /// Within a bound that is larger than the whole that it is about: anything would be.
    ProvesLittle,
    Beyond,
}

impl Fit {
    /// `residual_bytes` of `whole_bytes` are not explained.
    pub fn of(residual_bytes: i64, bound_bytes: u64, whole_bytes: u64) -> Self {
        match residual_bytes.unsigned_abs() {
            away if away > bound_bytes => Self::Beyond,
            _ if bound_bytes > whole_bytes => Self::ProvesLittle,
            _ => Self::Within,
        }
    }

    /// As it stands beside a figure.
    pub fn mark(self) -> &'static str {
        match self {
            Self::Within => "within the bound ✓",
            Self::ProvesLittle => "within a bound that is larger than the whole: proves little",
            Self::Beyond => "BEYOND THE BOUND ✗",
        }
    }

    /// As it ends a sentence.
    pub fn words(self) -> &'static str {
        match self {
            Self::Within => "within the bound",
            Self::ProvesLittle => {
                "within a bound that is larger than the whole, which proves little"
            }
            Self::Beyond => "more than the bound allows",
        }
    }
}

/// What a residual is about: whatever the kernel and the ledger say, the larger.
fn whole_bytes(usage_bytes: u64, ledger_bytes: i64) -> u64 {
    usage_bytes.max(ledger_bytes.unsigned_abs())
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
        self.fit() != Fit::Beyond
    }

    pub fn fit(&self) -> Fit {
        let whole = whole_bytes(self.usage_bytes, self.ledger_bytes);
        Fit::of(self.residual_bytes, self.bound_bytes, whole)
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
    pub nameless: u64,
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
    /// What the tracer cost until then; in the first of the reports that are made together.
    #[serde(rename = "self", skip_serializing_if = "Option::is_none")]
    pub own: Option<SelfCost>,
}

impl Report {
    /// Whether every figure is within its bound.
    pub fn holds(&self) -> bool {
        self.fit() != Fit::Beyond && self.counters.iter().all(CounterReport::holds)
    }

    /// The usage's; counters beside it have their own.
    pub fn fit(&self) -> Fit {
        let whole = whole_bytes(self.usage_bytes, self.ledger_bytes);
        Fit::of(self.residual_bytes, self.bound_bytes, whole)
    }
}

/// What the tracer itself costs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SelfCost {
    /// Time in our BPF programs; `None` unless the kernel's BPF statistics were on.
    pub bpf_run_ns: Option<u64>,
    pub bpf_runs: Option<u64>,
    /// Seconds since the start until which both were measured; `None` where they still are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bpf_until_s: Option<f64>,
    /// CPU time of the tracer's process, seconds.
    pub cpu_s: f64,
    pub rss_bytes: u64,
    /// Memory of the maps in the kernel.
    pub map_bytes: u64,
    /// By program; empty unless the kernel's BPF statistics were on.
    pub programs: Vec<ProgramCost>,
}

/// What one BPF program cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProgramCost {
    pub program: String,
    pub run_ns: u64,
    pub runs: u64,
    /// Runs that the kernel skipped because the program, or for kprobes and classic tracepoints any
    /// such program, was running on that CPU. What a second program took instead is not lost.
    pub skipped: u64,
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

/// A traced cgroup that was removed: there is no usage any more that its ledger could be held against.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gone {
    pub elapsed_s: f64,
    pub cgroup: String,
    pub cgroup_id: u64,
    /// There is another of its name by now, which is not traced.
    pub replaced: bool,
    /// What it made is in the figures of slab from here on too.
    pub slab_followed: bool,
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
