//! Records of the stream. Each begins with a [`Header`] that says its kind and length.

use crate::totals::COUNTERS;

/// Kinds of records; [`Header::kind`].
pub const KIND_COUNTER: u16 = 1;
/// A call of the user charge path.
pub const KIND_USER_CHARGE: u16 = 2;
/// A change of a `memory.stat` item.
pub const KIND_STATE: u16 = 3;
/// A slab object allocated or freed.
pub const KIND_SLAB: u16 = 4;
/// A write to a limit file.
pub const KIND_LIMIT: u16 = 5;
/// A cgroup made, removed, released, renamed, or a task moved into it.
pub const KIND_CGROUP: u16 = 6;

/// [`CounterRecord::op`]: `page_counter_charge`.
pub const OP_CHARGE: u8 = 0;
/// `page_counter_try_charge` that succeeded.
pub const OP_TRY_CHARGE: u8 = 1;
/// `page_counter_uncharge`.
pub const OP_UNCHARGE: u8 = 2;
/// `page_counter_try_charge` that hit a limit: nothing was charged.
pub const OP_REFUSED: u8 = 3;

/// [`SlabRecord::op`]: an allocation.
pub const OP_ALLOC: u8 = 0;
/// A free.
pub const OP_FREE: u8 = 1;

/// [`CgroupRecord::op`].
pub const OP_MKDIR: u8 = 0;
/// Directory removed; charges may live on.
pub const OP_RMDIR: u8 = 1;
/// The last reference is gone: nothing can be charged to it any more.
pub const OP_RELEASE: u8 = 2;
/// Directory renamed.
pub const OP_RENAME: u8 = 3;
/// A task was moved into it.
pub const OP_ATTACH: u8 = 4;

/// [`LimitRecord::source`]: the handler of a limit file.
pub const SOURCE_FILE: u32 = 0;
/// `memcg_update_kmem_limit` or `memcg_update_kmem_max`, called by such a handler.
pub const SOURCE_KMEM: u32 = 1;

/// Limits of a [`LimitRecord`]: `max` of the page counters by slot (0 … 3), then these.
pub const LIMITS: usize = 8;
/// `memory.high` (v2).
pub const LIMIT_HIGH: usize = 4;
/// `memory.soft_limit_in_bytes` (v1).
pub const LIMIT_SOFT: usize = 5;
/// `memory.min` (v2).
pub const LIMIT_MIN: usize = 6;
/// `memory.low` (v2).
pub const LIMIT_LOW: usize = 7;
/// A figure that this kernel does not have.
pub const UNREAD: u64 = u64::MAX;
/// The same in 32 bits.
pub const UNREAD_WORD: u32 = u32::MAX;

/// Bytes of a task's name, as the kernel keeps it.
pub const COMM_LEN: usize = 16;
/// Longest cgroup path in a record; a longer one loses its end.
pub const PATH_LEN: usize = 256;
/// Longest slab cache name in a record.
pub const CACHE_LEN: usize = 32;
/// Longest file name of a limit record.
pub const FILE_LEN: usize = 48;
/// Longest written text of a limit record.
pub const TEXT_LEN: usize = 64;

/// The beginning of every record.
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
pub struct Header {
    /// One of the `KIND_` constants.
    pub kind: u16,
    /// Bytes of the whole record.
    pub len: u16,
    /// The CPU it happened on.
    pub cpu: u32,
    /// `bpf_ktime_get_ns()`: nanoseconds of the monotonic clock.
    pub time_ns: u64,
    /// Process id (the kernel's tgid) of the task that ran, or that an interrupt ran over.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Name of the task.
    pub comm: [u8; COMM_LEN],
}

/// A page counter moved by `pages`; its ancestors moved with it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
pub struct CounterRecord {
    pub header: Header,
    /// Inode number of the cgroup whose counter was named in the call.
    pub cgroup_id: u64,
    pub pages: u64,
    /// One of the `SLOT_` constants.
    pub slot: u8,
    /// One of `OP_CHARGE` … `OP_REFUSED`.
    pub op: u8,
    pub reserved: [u8; 6],
}

/// The user charge path returned.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
pub struct UserChargeRecord {
    pub header: Header,
    pub cgroup_id: u64,
    pub pages: u32,
    /// 0 or a negative errno.
    pub result: i32,
    pub gfp: u32,
    pub reserved: u32,
}

/// A `memory.stat` item moved.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
pub struct StateRecord {
    pub header: Header,
    pub cgroup_id: u64,
    /// The kernel's own number of the item (`enum memcg_stat_item`, `enum node_stat_item`).
    pub item: i32,
    /// Pages, as the tracepoint gives them.
    pub pages: i32,
}

/// A slab object came or went.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
pub struct SlabRecord {
    pub header: Header,
    /// The cgroup that pays; 0: nobody, or not asked; [`crate::sums::OTHERS`].
    pub cgroup_id: u64,
    /// The cgroup that asked; 0 on frees of charged objects; [`crate::sums::OTHERS`].
    pub asker: u64,
    /// The object's address.
    pub object: u64,
    /// The instruction that asked.
    pub call_site: u64,
    /// Bytes asked for; 0 on a free.
    pub bytes_req: u64,
    /// Bytes taken; 0 where a free does not say.
    pub bytes_alloc: u64,
    pub gfp: u32,
    /// `OP_ALLOC` or `OP_FREE`.
    pub op: u8,
    /// 1: opted in to accounting, 0: not, 2: this kernel does not say.
    pub accounted: u8,
    /// One of the `CAUSE_` constants.
    pub cause: u8,
    pub reserved: u8,
    /// Cache name; empty where it cannot be read.
    pub cache: [u8; CACHE_LEN],
}

/// A write to a limit file returned, or the change of the kernel memory limit that it made.
///
/// Limits and usage are in the unit of the kernel's counters: pages (`page_counter`), or bytes
/// (`res_counter`, before 3.19). [`UNREAD`] where the kernel has no such counter.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
pub struct LimitRecord {
    pub header: Header,
    pub cgroup_id: u64,
    /// Bytes consumed or 0, or a negative errno.
    pub result: i64,
    /// Limits as the write began.
    pub before: [u64; LIMITS],
    /// Limits as it returned.
    pub after: [u64; LIMITS],
    /// Usage of the page counters as it returned, by slot.
    pub usage: [u64; COUNTERS],
    /// `SOURCE_KMEM`: the value the function was given; otherwise [`UNREAD`].
    pub value: u64,
    /// The file written to; empty where there is none.
    pub file: [u8; FILE_LEN],
    /// What was written.
    pub text: [u8; TEXT_LEN],
    /// Bytes of `text` that were written; 0 where the handler is not told.
    pub text_len: u32,
    /// `SOURCE_FILE` or `SOURCE_KMEM`.
    pub source: u32,
    /// What says whether the cgroup's kernel memory is accounted, raw, before and after
    /// (`kmem_state`, `kmem_acct_active`, `kmem_account_flags` by generation).
    pub kmem_before: u32,
    pub kmem_after: u32,
    /// More than 0: tasks are in the cgroup (the number is of task sets, not of tasks).
    pub populated: u32,
    /// Living cgroups below it; where the kernel keeps no number, 1 for some.
    pub descendants: u32,
}

/// A cgroup's life.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
pub struct CgroupRecord {
    pub header: Header,
    pub cgroup_id: u64,
    /// Hierarchy number of the tracepoint's `root` field: 0/1 = v2.
    pub hierarchy: u32,
    /// `OP_ATTACH`: the task that moved.
    pub task: u32,
    /// Depth below the hierarchy's root.
    pub level: u32,
    pub op: u8,
    pub reserved: [u8; 3],
    /// Path below the hierarchy's root, NUL-ended; empty where it cannot be read.
    pub path: [u8; PATH_LEN],
}

/// Bytes of the largest record.
pub const LARGEST_RECORD: usize = size_of::<LimitRecord>();

const _: () = assert!(size_of::<CgroupRecord>() <= LARGEST_RECORD);
const _: () = assert!(size_of::<Header>() == 40);
const _: () = assert!(size_of::<CounterRecord>() == 64);
const _: () = assert!(size_of::<UserChargeRecord>() == 64);
const _: () = assert!(size_of::<StateRecord>() == 56);
const _: () = assert!(size_of::<SlabRecord>() == 128);
const _: () = assert!(size_of::<LimitRecord>() == 360);
const _: () = assert!(size_of::<CgroupRecord>() == 320);
