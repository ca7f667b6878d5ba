//! Where the node's slab went, and what to say of it. Pure.
//!
//! What a cache's slabs hold beyond its objects is taken from `/proc/slabinfo`, which counts objects
//! on per-CPU lists as in use; so the node's sum is right but for those ([`super::coverage`]) and for
//! what came or went without an event.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use super::{
    charged::ChargedLine,
    coverage::{SlabFigures, UnseenLine, residual_bound_bytes},
    growth::GrowthLine,
};
use crate::{
    ledger::slab::NodeBytes,
    reconcile::report::RoleLost,
    view::size::{count, human},
};

/// Less than this held by the removed is no finding.
pub const WORTH_SAYING_BYTES: i64 = 16 * 1024;
/// Reasons that a verdict names.
const REASONS: usize = 3;

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
    /// At `kmem_cache.size` each.
    pub bytes: i64,
    /// What losses, and objects of the cache that went without an event, make of `objects` and `bytes`.
    pub bytes_are: Reading,
    pub allocated_bytes: u64,
    pub freed_bytes: u64,
    /// Our change in live objects of this cache, over all cgroups, by the kernel's; for caches
    /// that moved by more than 1 MiB.
    pub coverage: Option<f64>,
    /// How far from 1 `coverage` may be though no event is missing, as a share of the kernel's change:
    /// for free objects on per-CPU lists, and for what moved while the figures were read. `None` where
    /// the kernel does not say what lies there.
    pub coverage_bound: Option<f64>,
}

impl SlabLine {
    pub fn is_charged(&self) -> bool {
        self.cause == "charged"
    }
}

/// How a figure of what came less what went is to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reading {
    /// No event of it is known to be lost.
    #[default]
    Counted,
    /// Some that came are not in it.
    AtLeast,
    /// Some that went are not in it.
    AtMost,
    /// Both.
    About,
}

impl Reading {
    /// `came`: some that came are not in it; `went`: some that went are not.
    fn of(came: bool, went: bool) -> Self {
        match (came, went) {
            (false, false) => Self::Counted,
            (true, false) => Self::AtLeast,
            (false, true) => Self::AtMost,
            (true, true) => Self::About,
        }
    }

    /// Both of them.
    pub fn and(self, other: Self) -> Self {
        let either = |kinds: [Self; 2]| kinds.contains(&self) || kinds.contains(&other);
        Self::of(
            either([Self::AtLeast, Self::About]),
            either([Self::AtMost, Self::About]),
        )
    }

    /// Of the sum of some lines.
    pub fn of_sum<'a>(lines: impl IntoIterator<Item = &'a SlabLine>) -> Self {
        lines
            .into_iter()
            .fold(Self::Counted, |all, line| all.and(line.bytes_are))
    }

    /// Of what is left of a known sum when a figure that is to be read so is taken off.
    pub fn of_the_rest(self) -> Self {
        match self {
            Self::AtLeast => Self::AtMost,
            Self::AtMost => Self::AtLeast,
            other => other,
        }
    }

    /// Before a figure on the screen.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Counted => "",
            Self::AtLeast => "≥ ",
            Self::AtMost => "≤ ",
            Self::About => "≈ ",
        }
    }
}

/// What the slab programs lost; with any of it lines say what their bytes are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SlabLost {
    /// Events that found the map of sums full.
    pub map_full: u64,
    /// Objects without a payer that could not be remembered: their end counts under others.
    pub objects: u64,
    /// Objects whose slab page could not be found, or named another cache than the event.
    pub misread: u64,
    /// Runs of the slab programs that the kernel skipped, as far as it counts them.
    pub skipped: u64,
    /// Softirqs in which the kernel ran no program at all, and the pages that they moved at most; `None`
    /// where softirqs are not watched or not looked at twice yet.
    pub unwatched_softirqs: Option<u64>,
    pub unwatched_pages: Option<u64>,
    pub by_role: BTreeMap<&'static str, RoleLost>,
}

impl SlabLost {
    /// Nothing that is known.
    pub fn is_nothing(&self) -> bool {
        let counted = self.map_full + self.objects + self.misread + self.skipped;
        counted == 0 && !self.is_unwatched() && self.by_role.is_empty()
    }

    fn is_unwatched(&self) -> bool {
        self.unwatched_softirqs.is_some_and(|softirqs| softirqs > 0)
    }

    /// Without what was lost before the figures began, which they do not hold either.
    pub fn since(mut self, before: &Self) -> Self {
        self.map_full = self.map_full.saturating_sub(before.map_full);
        self.objects = self.objects.saturating_sub(before.objects);
        self.misread = self.misread.saturating_sub(before.misread);
        self.skipped = self.skipped.saturating_sub(before.skipped);
        // Before the second look nothing is known, and nothing taken off.
        let less = |now: Option<u64>, before: Option<u64>| {
            now.map(|now| now.saturating_sub(before.unwrap_or(0)))
        };
        self.unwatched_softirqs = less(self.unwatched_softirqs, before.unwatched_softirqs);
        self.unwatched_pages = less(self.unwatched_pages, before.unwatched_pages);
        for (role, lost) in &mut self.by_role {
            if let Some(before) = before.by_role.get(role) {
                lost.map_full = lost.map_full.saturating_sub(before.map_full);
                lost.skipped = lost.skipped.saturating_sub(before.skipped);
            }
        }
        self.by_role.retain(|_, lost| *lost != RoleLost::default());
        self
    }

    /// What that makes of a line of objects that somebody pays for, or (`is_charged` false) nobody.
    pub fn reading(&self, is_charged: bool) -> Reading {
        let any = |role: &str, of: fn(&RoleLost) -> u64| self.by_role.get(role).map_or(0, of) > 0;
        let of = |lost: &RoleLost| lost.map_full + lost.skipped;
        // Which of the two was misread, or not watched, or which helper's run was skipped, nobody knows.
        let both = self.misread > 0
            || self.is_unwatched()
            || self.by_role.iter().any(|(role, lost)| {
                !matches!(*role, "slab.alloc" | "slab.free") && lost.skipped > 0
            });
        let came = both || any("slab.alloc", of);
        let went = both || any("slab.free", of) || (!is_charged && self.objects > 0);
        Reading::of(came, went)
    }
}

/// Charged to one cgroup, asked for by a task of another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WrongPayerLine {
    pub payer: String,
    pub asker: String,
    /// `other-cgroup`: from the asker's side, why it is in no usage of its own.
    pub cause: &'static str,
    pub cache: String,
    pub call_site: String,
    pub allocated_bytes: u64,
}

/// What a removed cgroup still holds in one cache, of what it was charged with during the trace. Its
/// ancestors are charged with it now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadLine {
    /// The name it had.
    pub cgroup: String,
    pub cgroup_id: u64,
    pub cache: String,
    pub objects: i64,
    /// At `kmem_cache.size` each.
    pub bytes: i64,
}

/// What can be said of removed cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeadTotals {
    /// Whether objects are told by the cgroup that was charged first; otherwise what a removed
    /// cgroup held counts as its parent's.
    pub told_apart: bool,
    /// Sum of the `dead` lines.
    pub bytes: i64,
    /// Removed cgroups by what their objects are charged to, one or one a node each, beyond what is
    /// remembered: what they hold may be freed under their ancestors' names.
    pub forgotten: u64,
    /// Freed, of removed cgroups that are not known: removed before the trace, or forgotten. Booked
    /// to the ancestor.
    pub unnamed_freed_bytes: u64,
}

/// The node's slab since the trace began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeLine {
    /// Change of `Slab` in `/proc/meminfo`.
    pub slab_delta_bytes: i64,
    /// Charged to the traced subtrees.
    pub charged_bytes: i64,
    /// Asked for by them, charged to nobody.
    pub not_charged_bytes: i64,
    /// Other cgroups, the root, interrupts over other tasks.
    pub other_cgroups_bytes: i64,
    /// Large kmallocs that the traced subtrees asked for: pages, which the kernel counts into
    /// `Slab` (`__kmalloc_large_node`). The ends of others' do not say how large they were.
    pub large_kmalloc_bytes: i64,
    /// Change of slab pages that hold no object.
    pub overhead_bytes: i64,
    /// Of caches in `unseen`: what slabinfo says came, less what events told.
    pub unseen_bytes: i64,
    /// What is left.
    pub residual_bytes: i64,
    /// How much of what is left may be free objects on per-CPU lists, when the trace began or now,
    /// which slabinfo counts as in use, pages that CPUs had not added to `Slab` yet, and what moved while
    /// the figures were read; `None` where the kernel does not say what lies there.
    pub residual_bound_bytes: Option<u64>,
    pub unseen: Vec<UnseenLine>,
    /// Without `/proc/slabinfo`, when the trace began or now, there is no coverage, and what is left
    /// holds the page overhead.
    pub has_slabinfo: bool,
    /// Slab events that are in none of these.
    pub lost: SlabLost,
    /// What `other_cgroups_bytes` is made of, most bytes first.
    pub others: Vec<CauseBytes>,
    /// Of `charged_bytes`: what removed cgroups hold.
    pub dead: DeadTotals,
}

/// Live bytes of one cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CauseBytes {
    /// `charged`, to a cgroup that is not traced, or why to none.
    pub cause: &'static str,
    pub bytes: i64,
}

impl NodeLine {
    /// Takes large kmallocs out of what is left.
    pub fn with_large(mut self, bytes: i64) -> Self {
        self.large_kmalloc_bytes += bytes;
        self.residual_bytes -= bytes;
        self
    }
}

/// Where the slab went.
#[derive(Clone, Debug, PartialEq)]
pub struct SlabReport {
    /// Seconds since the trace began, when the figures were read.
    pub elapsed_s: f64,
    /// Most bytes first, charged before not charged.
    pub lines: Vec<SlabLine>,
    /// Pages of large kmallocs by call site: kernel memory, but no slab.
    pub large: Vec<SlabLine>,
    pub wrong_payers: Vec<WrongPayerLine>,
    /// Most bytes first.
    pub dead: Vec<DeadLine>,
    pub node: NodeLine,
    pub findings: Findings,
}

/// What the lines do not say by themselves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    pub charged: Vec<ChargedLine>,
    /// Fastest first.
    pub growing: Vec<GrowthLine>,
}

/// Adds the node up: change of slab = charged + not charged + others + page overhead + unseen +
/// residual.
pub fn node(
    sums: NodeBytes,
    before: &SlabFigures,
    now: &SlabFigures,
    unseen: Vec<UnseenLine>,
) -> NodeLine {
    let slab_delta_bytes = now.slab_bytes.cast_signed() - before.slab_bytes.cast_signed();
    let has_slabinfo = [before, now].iter().all(|it| !it.caches.is_empty());
    let overhead_bytes = if has_slabinfo {
        now.overhead_bytes() - before.overhead_bytes()
    } else {
        0
    };
    let unseen_bytes = unseen.iter().map(|line| line.bytes).sum();
    let explained = sums.charged + sums.not_charged + sums.others + overhead_bytes + unseen_bytes;
    NodeLine {
        slab_delta_bytes,
        charged_bytes: sums.charged,
        not_charged_bytes: sums.not_charged,
        other_cgroups_bytes: sums.others,
        overhead_bytes,
        unseen_bytes,
        residual_bytes: slab_delta_bytes - explained,
        residual_bound_bytes: residual_bound_bytes(before, now),
        unseen,
        has_slabinfo,
        lost: SlabLost::default(),
        ..NodeLine::default()
    }
}

impl SlabReport {
    /// How the sum of the lines of what somebody pays for (`true`), or nobody, is to be read. What was
    /// lost may be all that there would have been: lines do not tell that alone.
    pub fn reading(&self, charged: &[bool]) -> Reading {
        let wanted = |line: &&SlabLine| charged.contains(&line.is_charged()) && line.bytes != 0;
        let of_lines = Reading::of_sum(self.lines.iter().filter(wanted));
        let of_losses = charged.iter().map(|it| self.node.lost.reading(*it));
        of_losses.fold(of_lines, Reading::and)
    }
}

/// Why slab that was made for the traced cgroups is in nobody's usage: one cache and cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason<'a> {
    pub cache: &'a str,
    pub cause: &'static str,
    /// The call site of most bytes.
    pub call_site: Option<&'a str>,
    /// Of `objects`, those of `call_site`.
    pub objects_there: i64,
    pub objects: i64,
    pub bytes: i64,
}

impl Reason<'_> {
    /// Takes bytes out of which nobody knows whether they are still there; what that leaves of them.
    fn without(&mut self, bytes: i64) -> i64 {
        let taken = bytes.clamp(0, self.bytes.max(0));
        if taken > 0 {
            // All of one cache: each as large.
            let gone =
                (i128::from(self.objects) * i128::from(taken) / i128::from(self.bytes)) as i64;
            self.objects -= gone;
            self.objects_there = self.objects_there.min(self.objects);
            self.bytes -= taken;
        }
        bytes - taken
    }
}

/// The largest reasons, by cache and cause.
pub fn reasons(lines: &[SlabLine]) -> Vec<Reason<'_>> {
    let mut found: Vec<Reason<'_>> = Vec::new();
    let mut uncharged: Vec<&SlabLine> = lines.iter().filter(|line| !line.is_charged()).collect();
    uncharged.sort_by_key(|line| std::cmp::Reverse(line.bytes));
    for line in uncharged {
        match found
            .iter_mut()
            .find(|reason| reason.cache == line.cache && reason.cause == line.cause)
        {
            Some(reason) => {
                reason.objects += line.objects;
                reason.bytes += line.bytes;
                if line.call_site.as_deref() == reason.call_site {
                    reason.objects_there += line.objects;
                }
            }
            None => found.push(Reason {
                cache: &line.cache,
                cause: line.cause,
                call_site: line.call_site.as_deref(),
                objects_there: line.objects,
                objects: line.objects,
                bytes: line.bytes,
            }),
        }
    }
    found.retain(|reason| reason.bytes > 0);
    found.sort_by_key(|reason| (std::cmp::Reverse(reason.bytes), reason.cache));
    found
}

/// What of the lines may be gone, for objects of its cache went without an event, and whose these were
/// nobody knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Doubtful {
    bytes: i64,
    /// Of these, charged to nobody.
    uncharged_bytes: i64,
    /// By cache: all that went so, largest first.
    by_cache: Vec<(String, i64)>,
}

fn doubtful(report: &SlabReport) -> Doubtful {
    let mut doubtful = Doubtful::default();
    for unseen in report.node.unseen.iter().filter(|it| it.objects < 0) {
        let of = |is_wanted: fn(&SlabLine) -> bool| -> i64 {
            report
                .lines
                .iter()
                .filter(|line| line.cache == unseen.cache && is_wanted(line))
                .map(|line| line.bytes)
                .sum::<i64>()
                .max(0)
        };
        let all = of(|_| true).min(-unseen.bytes);
        if all > 0 {
            doubtful.bytes += all;
            doubtful.uncharged_bytes += of(|line| !line.is_charged()).min(-unseen.bytes);
            doubtful
                .by_cache
                .push((unseen.cache.clone(), -unseen.bytes));
        }
    }
    doubtful
}

/// The sentences that a trace ends with: what of the slab is in no usage, and the largest reasons.
pub fn verdict(report: &SlabReport) -> Vec<String> {
    let mut sentences = missing(report);
    sentences.extend(held_by_the_dead(&report.dead));
    sentences
}

/// Of what removed cgroups still hold: the sum, and the largest by cgroup and cache.
fn held_by_the_dead(dead: &[DeadLine]) -> Option<String> {
    let sum: i64 = dead.iter().map(|line| line.bytes).sum();
    let largest = dead.first()?;
    if sum < WORTH_SAYING_BYTES {
        return None;
    }
    let cgroups: HashSet<u64> = dead.iter().map(|line| line.cgroup_id).collect();
    Some(format!(
        "{} of slab are still held by {} that {} removed, {} of it {} by {}; they stay charged to \
         what is above until they are freed (reclaim: lower the limit for a while, or drop caches).",
        human(sum.unsigned_abs()),
        match cgroups.len() {
            1 => "a cgroup".to_owned(),
            many => format!("{many} cgroups"),
        },
        if cgroups.len() == 1 { "was" } else { "were" },
        human(largest.bytes.unsigned_abs()),
        largest.cache,
        largest.cgroup,
    ))
}

/// What is in no usage, and why.
fn missing(report: &SlabReport) -> Vec<String> {
    let node = &report.node;
    let mut reasons = reasons(&report.lines);
    if node.not_charged_bytes <= 0 || reasons.is_empty() {
        return Vec::new();
    }
    let doubtful = doubtful(report);
    for (cache, gone) in &doubtful.by_cache {
        let mut left = *gone;
        for reason in reasons.iter_mut().filter(|it| it.cache == cache) {
            left = reason.without(left);
        }
    }
    reasons.retain(|reason| reason.bytes > 0);
    reasons.sort_by_key(|reason| (std::cmp::Reverse(reason.bytes), reason.cache));
    let made = node.charged_bytes + node.not_charged_bytes - doubtful.bytes;
    let missing = (node.not_charged_bytes - doubtful.uncharged_bytes).max(0);
    // By what was lost alone: what may have gone without an event is out of both, and has its sentence.
    let [of_uncharged, of_charged] = [false, true].map(|charged| node.lost.reading(charged));
    let (of_all, of_missing) = (of_charged.and(of_uncharged).sign(), of_uncharged.sign());
    let mut sentences = vec![if missing > made {
        // Charged slab that was there before went: no share of what came.
        format!(
            "{of_missing}{} of slab made here are in no usage; what is charged of slab fell by {} meanwhile.",
            human(missing.unsigned_abs()),
            human((missing - made).unsigned_abs()),
        )
    } else {
        format!(
            "Of {of_all}{} of slab made here, {of_missing}{} ({:.0} %) are in no usage.",
            human(made.unsigned_abs()),
            human(missing.unsigned_abs()),
            missing as f64 * 100.0 / made.max(1) as f64
        )
    }];
    if doubtful.bytes >= WORTH_SAYING_BYTES {
        let caches: Vec<String> = doubtful
            .by_cache
            .iter()
            .map(|(cache, gone)| format!("{cache} ({} of the node)", human(gone.unsigned_abs())))
            .collect();
        sentences.push(format!(
            "Not in that: up to {} more, of caches whose objects went without an event, whosesoever they were: {}.",
            human(doubtful.bytes.unsigned_abs()),
            caches.join(", ")
        ));
    }
    let off: i64 = report
        .lines
        .iter()
        .filter(|line| line.cause == "nokmem")
        .map(|line| line.bytes)
        .sum();
    if off > 0 {
        sentences.push(format!(
            "Accounting of kernel memory is off since boot (cgroup.memory=nokmem): {} of that would be charged with it on.",
            human(off.unsigned_abs())
        ));
    }
    for (place, reason) in reasons.iter().take(REASONS).enumerate() {
        let site = match reason.call_site {
            None => String::new(),
            Some(site) if reason.objects_there == reason.objects => format!(" at {site}"),
            Some(site) => format!(
                ", {} of them at {site}",
                count(reason.objects_there.unsigned_abs())
            ),
        };
        sentences.push(format!(
            "{}. {} ({:.0} % of that): {} × {}{site}, {}; {}.",
            place + 1,
            human(reason.bytes.unsigned_abs()),
            reason.bytes as f64 * 100.0 / missing.max(1) as f64,
            count(reason.objects.unsigned_abs()),
            reason.cache,
            because(reason.cause),
            advice(reason.cause),
        ));
    }
    sentences
}

/// A cause as a person says it.
pub fn because(cause: &str) -> &'static str {
    match cause {
        "not-accountable" => "not accountable: neither __GFP_ACCOUNT nor SLAB_ACCOUNT",
        "softirq" => "born in softirq: no task to charge",
        "hardirq" => "born in a hardirq handler: no task to charge",
        "kernel-thread" => "asked for by a kernel thread",
        "root" => "asked for by the root cgroup",
        "nokmem" => "booted with cgroup.memory=nokmem",
        "before-trace" => "older than the trace",
        "bh-disabled" => "asked for with softirqs off, which this kernel takes for an interrupt",
        "no-mm" => "asked for by a task that was exiting",
        "not-slab" => "pages, no slab",
        _ => "cause unknown",
    }
}

/// The same in few words.
pub fn briefly(cause: &str) -> &'static str {
    let said = because(cause);
    said.split_once(": ").map_or(said, |(brief, _)| brief)
}

/// What one can do about it.
fn advice(cause: &str) -> &'static str {
    match cause {
        "softirq" => {
            "limit what makes them (connections, packets in flight): no setting of this cgroup charges them at birth"
        }
        "hardirq" => "limit what makes them: no setting of this cgroup charges them",
        "not-accountable" => {
            "the kernel never charges these, so count them into the node's own reserve"
        }
        "kernel-thread" => {
            "move the work out of the kernel thread, or count it into the node's reserve"
        }
        "root" => "run what asks for them in a cgroup",
        "nokmem" => "boot without cgroup.memory=nokmem",
        "bh-disabled" => "newer kernels (5.14 and later) charge these",
        "no-mm" => "they go with the task's last references",
        _ => "see the call site",
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::coverage::tests::{cache, figures},
        *,
    };

    fn line(cache: &str, cause: &'static str, site: &str, objects: i64, bytes: i64) -> SlabLine {
        SlabLine {
            bytes_are: Reading::Counted,
            cgroup: "/a".to_owned(),
            cache: cache.to_owned(),
            cause,
            call_site: Some(site.to_owned()),
            objects,
            bytes,
            allocated_bytes: bytes.unsigned_abs(),
            freed_bytes: 0,
            coverage: None,
            coverage_bound: None,
        }
    }

    #[test]
    fn the_node_adds_up_with_its_page_overhead_and_what_is_left_is_the_residual() {
        let before = figures(1 << 20, vec![cache("TCP", 0, 2048, 0)]);
        // 1000 objects of 2048 bytes in 600 pages: 409 600 bytes of pages hold nothing.
        let now = figures((1 << 20) + 600 * 4096, vec![cache("TCP", 1000, 2048, 600)]);
        let sums = NodeBytes {
            charged: 500 * 2048,
            not_charged: 400 * 2048,
            others: 99 * 2048,
        };
        let node = node(sums, &before, &now, Vec::new());
        assert!(node.has_slabinfo);
        assert_eq!(node.overhead_bytes, 409_600);
        // The one object that slabinfo counts and no event told of.
        assert_eq!(node.residual_bytes, 2048);
        let node = node.with_large(1024);
        assert_eq!(
            (node.large_kmalloc_bytes, node.residual_bytes),
            (1024, 1024)
        );
    }

    #[test]
    fn without_slabinfo_at_one_end_the_overhead_is_part_of_what_is_left() {
        let before = figures(1 << 20, Vec::new());
        let now = figures((1 << 20) + 4096, vec![cache("TCP", 1, 2048, 100)]);
        let node = node(NodeBytes::default(), &before, &now, Vec::new());
        assert!(!node.has_slabinfo);
        assert_eq!((node.overhead_bytes, node.residual_bytes), (0, 4096));
        assert_eq!(node.residual_bound_bytes, None);
    }

    #[test]
    fn a_verdict_names_the_largest_reasons_first_with_bytes_and_count() {
        let report = SlabReport {
            elapsed_s: 1.0,
            lines: vec![
                line("TCP", "charged", "sk_prot_alloc+0x32", 100, 204_800),
                line("lsm", "not-accountable", "security+0x1", 10, 320),
                line("TCP", "softirq", "sk_prot_alloc+0x32", 100, 204_800),
                line("lsm", "not-accountable", "security+0x2", 20, 640),
            ],
            large: Vec::new(),
            wrong_payers: Vec::new(),
            dead: Vec::new(),
            node: NodeLine {
                charged_bytes: 204_800,
                not_charged_bytes: 205_760,
                ..NodeLine::default()
            },
            findings: Findings::default(),
        };
        let said = verdict(&report);
        assert_eq!(said.len(), 3);
        assert!(said[0].contains("50 %"), "{}", said[0]);
        assert!(
            said[1].starts_with(
                "1. 200.0 KiB (100 % of that): 100 × TCP at sk_prot_alloc+0x32, born in softirq"
            ),
            "{}",
            said[1]
        );
        // Two call sites of one cache and cause are one reason, named by the larger.
        assert!(
            said[2].starts_with(
                "2. 960 B (0 % of that): 30 × lsm, 20 of them at security+0x2, not accountable"
            ),
            "{}",
            said[2]
        );
    }

    #[test]
    fn a_verdict_says_what_would_be_charged_if_accounting_were_not_off_since_boot() {
        let report = SlabReport {
            elapsed_s: 1.0,
            lines: vec![
                line("lsm", "not-accountable", "a", 1, 2048),
                line("filp", "nokmem", "b", 4, 1024),
                line("pid", "nokmem", "c", 4, 512),
            ],
            large: Vec::new(),
            wrong_payers: Vec::new(),
            dead: Vec::new(),
            node: NodeLine {
                not_charged_bytes: 3584,
                ..NodeLine::default()
            },
            findings: Findings::default(),
        };
        let said = verdict(&report);
        assert_eq!(
            said[1],
            "Accounting of kernel memory is off since boot (cgroup.memory=nokmem): 1.5 KiB of that would be charged with it on."
        );
    }

    /// A report of these lines, of whose cache so many objects of one size went without an event.
    fn with_unseen(lines: Vec<SlabLine>, cache: &str, objects: i64, size: i64) -> SlabReport {
        let sum = |is_charged: bool| {
            lines
                .iter()
                .filter(|line| (line.cause == "charged") == is_charged)
                .map(|line| line.bytes)
                .sum()
        };
        SlabReport {
            elapsed_s: 1.0,
            node: NodeLine {
                charged_bytes: sum(true),
                not_charged_bytes: sum(false),
                unseen: vec![UnseenLine {
                    cache: cache.to_owned(),
                    objects,
                    bytes: objects * size,
                }],
                ..NodeLine::default()
            },
            lines,
            large: Vec::new(),
            wrong_payers: Vec::new(),
            dead: Vec::new(),
            findings: Findings::default(),
        }
    }

    #[test]
    fn what_may_have_gone_without_an_event_is_no_reason() {
        let lines = || {
            vec![
                line("maple_node", "not-accountable", "mas_a", 600, 153_600),
                line("maple_node", "not-accountable", "mas_b", 400, 102_400),
                line("TCP", "softirq", "sk_prot_alloc", 10, 20_480),
                line("filp", "charged", "alloc_empty_file", 100, 20_480),
            ]
        };
        // More went than is here: nothing of it is certain.
        let said = verdict(&with_unseen(lines(), "maple_node", -5000, 256));
        assert_eq!(
            said[0],
            "Of 40.0 KiB of slab made here, 20.0 KiB (50 %) are in no usage."
        );
        assert!(
            said[1].contains("up to 250.0 KiB more")
                && said[1].contains("maple_node (1 250.0 KiB of the node)"),
            "{}",
            said[1]
        );
        assert!(
            said[2].starts_with("1. 20.0 KiB (100 % of that): 10 × TCP"),
            "{}",
            said[2]
        );
        assert_eq!(said.len(), 3);
        // Some of it is there still.
        let said = verdict(&with_unseen(lines(), "maple_node", -200, 256));
        assert!(
            said[2].contains("200.0 KiB")
                && said[2].contains("800 × maple_node, 600 of them at mas_a"),
            "{}",
            said[2]
        );
        // What came without an event is in no line.
        let said = verdict(&with_unseen(lines(), "maple_node", 5000, 256));
        assert!(
            said[1].contains("1000 × maple_node") || said[1].contains("1 000 × maple_node"),
            "{}",
            said[1]
        );
    }

    #[test]
    fn what_is_gone_of_a_cache_is_taken_from_charged_lines_too() {
        let lines = vec![
            line("radix", "charged", "a", 100, 57_600),
            line("radix", "not-accountable", "b", 100, 57_600),
        ];
        let found = doubtful(&with_unseen(lines, "radix", -150, 576));
        assert_eq!((found.bytes, found.uncharged_bytes), (150 * 576, 57_600));
    }

    #[test]
    fn there_is_no_share_of_more_than_all() {
        let report = with_unseen(
            vec![
                line("dentry", "charged", "a", -256, -49_152),
                line("maple_node", "not-accountable", "b", 200, 51_200),
            ],
            "other",
            -1,
            1,
        );
        assert_eq!(
            verdict(&report)[0],
            "50.0 KiB of slab made here are in no usage; what is charged of slab fell by 48.0 KiB meanwhile."
        );
    }

    #[test]
    fn a_sum_without_a_line_is_no_count_where_events_were_lost() {
        let mut report = SlabReport {
            elapsed_s: 1.0,
            lines: Vec::new(),
            large: Vec::new(),
            wrong_payers: Vec::new(),
            dead: Vec::new(),
            node: NodeLine::default(),
            findings: Findings::default(),
        };
        assert_eq!(report.reading(&[true, false]), Reading::Counted);
        report.node.lost.by_role.insert(
            "slab.alloc",
            RoleLost {
                map_full: 7,
                ..RoleLost::default()
            },
        );
        assert_eq!(report.reading(&[true]), Reading::AtLeast);
        // Of what nobody pays for alone the ends are not known.
        report.node.lost.objects = 1;
        assert_eq!(report.reading(&[true]), Reading::AtLeast);
        assert_eq!(report.reading(&[true, false]), Reading::About);
    }

    #[test]
    fn readings_of_lines_add_up() {
        use Reading::{About, AtLeast, AtMost, Counted};
        assert_eq!(Counted.and(Counted), Counted);
        assert_eq!(AtLeast.and(Counted), AtLeast);
        assert_eq!(AtLeast.and(AtMost), About);
        assert_eq!(About.and(Counted), About);
    }

    #[test]
    fn nothing_missing_needs_no_verdict() {
        let report = SlabReport {
            elapsed_s: 1.0,
            lines: vec![line("TCP", "charged", "x", 1, 2048)],
            large: Vec::new(),
            wrong_payers: Vec::new(),
            dead: Vec::new(),
            node: NodeLine {
                charged_bytes: 2048,
                ..NodeLine::default()
            },
            findings: Findings::default(),
        };
        assert!(verdict(&report).is_empty());
    }

    #[test]
    fn what_was_lost_says_how_a_line_is_to_be_read() {
        let lost = |role, map_full, skipped| SlabLost {
            by_role: BTreeMap::from([(
                role,
                RoleLost {
                    ring: 0,
                    map_full,
                    skipped,
                },
            )]),
            ..SlabLost::default()
        };
        let both = |lost: &SlabLost| [lost.reading(true), lost.reading(false)];
        assert_eq!(both(&SlabLost::default()), [Reading::Counted; 2]);
        assert_eq!(both(&lost("slab.alloc", 3, 0)), [Reading::AtLeast; 2]);
        assert_eq!(both(&lost("slab.free", 0, 2)), [Reading::AtMost; 2]);
        assert_eq!(both(&lost("slab.charge", 0, 1)), [Reading::About; 2]);
        let forgotten = SlabLost {
            objects: 5,
            ..SlabLost::default()
        };
        assert_eq!(both(&forgotten), [Reading::Counted, Reading::AtMost]);
        let misread = SlabLost {
            misread: 1,
            ..SlabLost::default()
        };
        assert_eq!(both(&misread), [Reading::About; 2]);
        let unwatched = SlabLost {
            unwatched_softirqs: Some(1),
            ..SlabLost::default()
        };
        assert_eq!(both(&unwatched), [Reading::About; 2]);
        assert!(unwatched.clone().since(&unwatched).is_nothing());
        let from_the_start = unwatched.clone().since(&SlabLost::default());
        assert_eq!(from_the_start, unwatched);
        assert_eq!(Reading::AtLeast.sign(), "≥ ");
    }

    #[test]
    fn what_was_lost_before_the_figures_began_makes_no_line_unsure() {
        let lost = |misread, skipped| SlabLost {
            misread,
            skipped,
            by_role: BTreeMap::from([(
                "slab.free",
                RoleLost {
                    skipped,
                    ..RoleLost::default()
                },
            )]),
            ..SlabLost::default()
        };
        assert!(lost(2, 3).since(&lost(2, 3)).is_nothing());
        let later = lost(2, 5).since(&lost(2, 3));
        assert_eq!((later.misread, later.skipped), (0, 2));
        assert_eq!(later.by_role["slab.free"].skipped, 2);
        assert_eq!(
            lost(1, 0).since(&SlabLost::default()),
            lost(1, 0).since(&lost(0, 0))
        );
    }

    #[test]
    fn what_removed_cgroups_hold_is_said_with_the_largest_by_name() {
        let dead = |id, cgroup: &str, cache: &str, bytes| DeadLine {
            cgroup: cgroup.to_owned(),
            cgroup_id: id,
            cache: cache.to_owned(),
            objects: 1,
            bytes,
        };
        let one = [
            dead(7, "/a/gone", "dentry", 192 << 10),
            dead(7, "/a/gone", "inode_cache", 64 << 10),
        ];
        let said = held_by_the_dead(&one).expect("a finding");
        assert!(
            said.starts_with(
                "256.0 KiB of slab are still held by a cgroup that was removed, 192.0 KiB of it \
                 dentry by /a/gone;"
            ),
            "{said}"
        );
        let two = [one[0].clone(), dead(8, "/a/other", "dentry", 64 << 10)];
        let said = held_by_the_dead(&two).expect("a finding");
        assert!(said.contains("by 2 cgroups that were removed"), "{said}");
        assert_eq!(held_by_the_dead(&[dead(7, "/a", "dentry", 192)]), None);
        assert_eq!(held_by_the_dead(&[]), None);
    }
}
