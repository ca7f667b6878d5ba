//! What the programs add up in per-CPU maps, and the names of the places in it.
//!
//! Totals are monotonic: userspace sums them over the CPUs and takes differences. They stay right
//! when a streamed record did not fit into the ring.

/// `struct mem_cgroup`'s page counter `memory`: what `memory.usage_in_bytes` and
/// `memory.current` read.
pub const SLOT_MEMORY: usize = 0;
/// Page counter `kmem` (v1).
pub const SLOT_KMEM: usize = 1;
/// Page counter `memsw` (v1) or `swap` (v2): one place in `struct mem_cgroup`.
pub const SLOT_SWAP: usize = 2;
/// Page counter `tcpmem` (v1).
pub const SLOT_TCPMEM: usize = 3;
/// How many page counters a memory cgroup has.
pub const COUNTERS: usize = 4;

/// `memory.stat` items counted in pages, from the `memcg:*` tracepoints: mapped anonymous memory.
pub const SLOT_STAT_ANON: usize = 4;
/// Page cache, tmpfs and swap cache (`NR_FILE_PAGES`).
pub const SLOT_STAT_FILE: usize = 5;
/// Kernel memory, slab included (`MEMCG_KMEM`).
pub const SLOT_STAT_KMEM: usize = 6;
/// Socket buffers (`MEMCG_SOCK`).
pub const SLOT_STAT_SOCK: usize = 7;
/// All places of a [`Totals`].
pub const SLOTS: usize = 8;

/// What one memory cgroup itself was charged and uncharged, descendants not included, in pages.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
pub struct Totals {
    /// Pages charged, by slot.
    pub charged: [u64; SLOTS],
    /// Pages uncharged, by slot.
    pub uncharged: [u64; SLOTS],
    /// Successful calls of the user charge path (`try_charge` and its successors).
    pub user_charges: u64,
    /// Refused calls of the user charge path.
    pub user_refusals: u64,
    /// Most pages that one change moved.
    pub largest: u64,
}

/// A place in the totals, and what the kernel's page counters say of its cgroup's place in the tree.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
pub struct Place {
    /// 0 where nobody took it.
    pub cgroup_id: u64,
    /// The cgroup whose `memory` counter is this one's `page_counter.parent`; 0 where there is none,
    /// or where it was not asked for.
    pub parent_id: u64,
    /// 1 once the kernel has let go of the cgroup: nothing moves here any more.
    pub released: u64,
}

// Roles that losses are told by, in the order of [`ROLE_NAMES`].
pub const ROLE_CHARGE: u32 = 0;
pub const ROLE_UNCHARGE: u32 = 1;
pub const ROLE_USER_CHARGE: u32 = 2;
pub const ROLE_STATE: u32 = 3;
pub const ROLE_SLAB_ALLOC: u32 = 4;
pub const ROLE_SLAB_FREE: u32 = 5;
pub const ROLE_LIMIT: u32 = 6;
pub const ROLE_CGROUP: u32 = 7;
/// How many there are.
pub const LOSERS: u32 = 8;
/// As the hook table calls them.
pub const ROLE_NAMES: [&str; LOSERS as usize] = [
    "counter.charge",
    "counter.uncharge",
    "charge.user",
    "memcg.state",
    "slab.alloc",
    "slab.free",
    "limit.write",
    "cgroup.lifecycle",
];

/// Records that found the ring full: a tally a role, from here on.
pub const LOST_RING: u32 = 0;
/// Events that found a map full, of sums or of calls under way; by role.
pub const LOST_MAP_FULL: u32 = LOST_RING + LOSERS;
/// Events of which what they are about could not be read, and calls of counters that were not
/// remembered: not in any total; by role.
pub const LOST_UNREAD: u32 = LOST_MAP_FULL + LOSERS;
/// Cgroups whose ancestors were deeper than the programs walk.
pub const LOST_DEPTH: u32 = LOST_UNREAD + LOSERS;
/// Counter changes of other controllers (hugetlb, dmem), or of cgroups that are not traced.
pub const SEEN_ELSEWHERE: u32 = LOST_DEPTH + 1;
/// Pages of those charges that are in no total (unread or map full).
pub const LOST_PAGES: u32 = LOST_DEPTH + 2;
/// Calls that the first of each pair of fentry programs saw begin.
pub const CALLS_BEGUN: u32 = LOST_DEPTH + 3;
/// Calls that were counted when they ended, or told as lost when they began.
pub const CALLS_COUNTED: u32 = LOST_DEPTH + 4;
/// Objects without a payer that could not be remembered: their frees count as older than the trace.
pub const LOST_OBJECTS: u32 = LOST_DEPTH + 5;
/// Objects whose slab page could not be found, or named another cache than the event: not counted.
pub const SLAB_MISREAD: u32 = LOST_DEPTH + 6;
/// Removed cgroups that were remembered by what their objects are charged to.
pub const DEAD_NOTED: u32 = LOST_DEPTH + 7;
/// Events that the second program of a pair took care of, because the kernel skipped the first: a
/// tally a pair, from here on.
pub const SECOND_RUNS: u32 = LOST_DEPTH + 8;
/// Pages that `memory.stat` items moved, up or down, of all cgroups.
pub const PAGES_MOVED: u32 = SECOND_RUNS + crate::pairs::PAIRS;
/// Softirqs in which programs ran: a tally a vector, from here on.
pub const SOFTIRQS_SEEN: u32 = PAGES_MOVED + 1;
/// Most pages that one softirq over a task was seen to move; by vector. Of the CPUs' copies the largest counts.
pub const SOFTIRQ_MOST: u32 = SOFTIRQS_SEEN + VECTORS;
/// Places in the tally map, a CPU.
pub const TALLIES: u32 = SOFTIRQ_MOST + VECTORS;

/// Softirq vectors (`NR_SOFTIRQS`, include/linux/interrupt.h), in the order of `/proc/softirqs`.
pub const VECTORS: u32 = 10;

// What the program that gives places back is asked for.
/// A place of the totals is free again.
pub const GIVE_BACK: u64 = 0;
/// A place of the slab sums is no longer found by its key.
pub const FORGET_SLAB: u64 = 1;
/// A place of the slab sums is free again.
pub const GIVE_BACK_SLAB: u64 = 2;
/// Places of the totals that nobody has taken yet: the number of the last, and how many down from it.
pub const FILL: u64 = 3;
/// The same for the slab sums.
pub const FILL_SLAB: u64 = 4;
/// Most that one run fills.
pub const FILL_MOST: u32 = 128;

// Switches that userspace may turn while programs run, where it said at load that it might.
/// Not 0: send no records but those of cgroups and limits.
pub const SWITCH_NO_STREAM: u32 = 0;
/// Not 0: slab sums without call sites.
pub const SWITCH_NO_CALL_SITES: u32 = 1;
pub const SWITCHES: u32 = 2;

/// How many levels of ancestors a program walks when it first sees a cgroup.
pub const ANCESTRY_DEPTH: usize = 64;

const _: () = assert!(size_of::<Totals>() == 2 * SLOTS * 8 + 24);
const _: () = assert!(size_of::<Place>() == 24);
