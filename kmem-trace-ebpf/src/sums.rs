//! Slab attribution: what the programs add up, and under which keys.

/// Longest slab cache name kept.
pub const CACHE_NAME: usize = 32;

/// Charged to the payer of the key.
pub const CAUSE_CHARGED: u8 = 0;
/// Neither `__GFP_ACCOUNT` nor `SLAB_ACCOUNT`.
pub const CAUSE_NOT_ACCOUNTABLE: u8 = 1;
/// Asked for in a softirq: no task to charge.
pub const CAUSE_SOFTIRQ: u8 = 2;
/// Asked for in a hardirq handler.
pub const CAUSE_HARDIRQ: u8 = 3;
/// Asked for by a kernel thread.
pub const CAUSE_KERNEL_THREAD: u8 = 4;
/// The asking task is in the root cgroup.
pub const CAUSE_ROOT: u8 = 5;
/// Booted with `cgroup.memory=nokmem`.
pub const CAUSE_NOKMEM: u8 = 6;
/// Freed, and older than the trace or not ours.
pub const CAUSE_BEFORE_TRACE: u8 = 7;
/// None of the above: said, not forced.
pub const CAUSE_UNKNOWN: u8 = 8;
/// No slab at all: the pages of a large kmalloc.
pub const CAUSE_NOT_SLAB: u8 = 9;

/// Charged to the payer of the key, which has it from a cgroup that was removed before the trace
/// began: freed since.
pub const CAUSE_REPARENTED: u8 = 10;
/// Asked for by a task with softirqs off, which kernels before 5.14 take for an interrupt.
pub const CAUSE_BH_DISABLED: u8 = 11;
/// Asked for by a task that has no memory of its own any more: it is exiting.
pub const CAUSE_NO_MM: u8 = 12;
/// In records: the object was not asked.
pub const CAUSE_UNASKED: u8 = u8::MAX;

/// In [`SlabKey::payer`] and [`SlabKey::asker`]: some cgroup that is not traced.
pub const OTHERS: u64 = u64::MAX;

/// Keys that the sums hold.
pub const SLAB_KEYS: u32 = 16_384;

/// Places that each CPU finds without a look-up, having used them last; a power of two.
pub const LAST: u32 = 512;

/// What slab is added up by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SlabKey {
    /// The cgroup that is charged; 0: nobody; [`OTHERS`].
    pub payer: u64,
    /// The cgroup of the task that ran; 0 on frees of charged objects; [`OTHERS`].
    pub asker: u64,
    /// Address of the `struct kmem_cache`; 0: pages of a large kmalloc, which are no slab.
    pub cache: u64,
    /// The instruction that asked; 0 where neither payer nor asker is traced, and on frees of
    /// charged objects.
    pub call_site: u64,
    /// One of the `CAUSE_` constants.
    pub cause: u8,
    /// 1 where a place is this key's; 0 in the key itself.
    pub taken: u8,
    pub reserved: [u8; 2],
    /// Bytes of each object, `kmem_cache.size`; 0 where they differ: pages of a large kmalloc.
    pub size: u32,
}

/// Objects and bytes (`kmem_cache.size` each) that came and went. The programs count objects alone
/// where the key says of what size they are.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlabSums {
    pub allocated: u64,
    pub allocated_bytes: u64,
    pub freed: u64,
    pub freed_bytes: u64,
}

/// A cgroup that was removed, by what its objects are charged to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dead {
    pub cgroup_id: u64,
    /// Its `css.serial_nr`.
    pub serial: u64,
}

/// Removed cgroups that are remembered; the one not asked for longest makes room.
pub const DEAD: u32 = 16_384;

/// A slab cache.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    pub name: [u8; CACHE_NAME],
    /// Bytes an object takes.
    pub size: u32,
    /// Bytes of it that are asked for.
    pub object_size: u32,
    pub flags: u32,
    pub reserved: u32,
}

/// Where an object that nobody pays for came from.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub asker: u64,
    pub call_site: u64,
    /// Of pages of a large kmalloc: how many bytes.
    pub bytes: u32,
    pub cause: u8,
    pub reserved: [u8; 3],
}

const _: () = assert!(size_of::<SlabKey>() == 40);
const _: () = assert!(size_of::<SlabSums>() == 32);
const _: () = assert!(size_of::<Cache>() == 48);
const _: () = assert!(size_of::<Origin>() == 24);
