//! Constants that userspace resolves from the running kernel and writes into the object's
//! `.rodata` before loading it. The verifier folds them away, and with them the code of every
//! feature that is off.

use crate::{record::LIMITS, totals::COUNTERS};

/// How many `--cgroup` subtrees one tracer can follow.
pub const ROOTS: usize = 4;
/// How many `memory.stat` items one slot of the totals may gather.
pub const ITEMS: usize = 4;
/// No such member in this kernel.
pub const ABSENT: u32 = u32::MAX;

/// Stands in the programs for a call of `bpf_rdonly_cast`: no helper has that number.
pub const CAST_CALL: i32 = 0x7ca5_7000;

/// A traced subtree.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(feature = "user", derive(zerocopy::IntoBytes, zerocopy::Immutable))]
pub struct Root {
    /// Inode number of its top cgroup.
    pub id: u64,
    /// Depth of that cgroup below the hierarchy's root.
    pub level: u32,
    pub reserved: u32,
}

/// Everything the programs know about this kernel. Offsets in bytes; [`ABSENT`] = no such member.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(zerocopy::IntoBytes, zerocopy::Immutable))]
pub struct Config {
    /// Traced subtrees; the first `roots_len` count.
    pub roots: [Root; ROOTS],
    /// `&memory_cgrp_subsys`; 0 where the symbol table hides addresses.
    pub memory_cgrp_subsys: u64,
    /// The tracer's own memory cgroup, to check all offsets by; 0 where it is not known.
    pub own_cgroup: u64,
    /// `&vmemmap_base` and `&page_offset_base`; 0 where the symbol table has no variables.
    pub vmemmap_base: u64,
    pub page_offset_base: u64,
    /// `kmem_cache_alloc_bulk` itself; 0 where the symbol table hides addresses.
    pub bulk_alloc: u64,
    /// `&__per_cpu_offset`, and where in a CPU's copy of the per-CPU variables its preempt count is;
    /// 0: contexts are noted at events.
    pub per_cpu_offset: u64,
    pub preempt_count: u64,
    /// The bits of `kernfs_node_id` that are the inode number of the directory: before 5.5 the
    /// upper half is a generation.
    pub kernfs_node_id_mask: u64,
    pub roots_len: u32,

    // --- struct members ---
    /// `struct page_counter`: `parent`.
    pub page_counter_parent: u32,
    /// `struct mem_cgroup`: `memory`, `kmem`, `memsw`/`swap`, `tcpmem`, by slot.
    pub memcg_counter: [u32; 4],
    /// `struct mem_cgroup`: `css.ss`.
    pub memcg_css_ss: u32,
    /// `struct mem_cgroup`: `css.cgroup`.
    pub memcg_css_cgroup: u32,
    /// `struct cgroup`: `level`.
    pub cgroup_level: u32,
    /// `struct cgroup`: `kn`.
    pub cgroup_kn: u32,
    /// `struct cgroup`: `ancestors` (pointers) or `ancestor_ids`.
    pub cgroup_ancestors: u32,
    /// 1 where `cgroup_ancestors` holds ids instead of pointers.
    pub cgroup_ancestors_are_ids: u32,
    /// `struct cgroup`: `root`.
    pub cgroup_root_member: u32,
    /// `struct cgroup_root`: `hierarchy_id`.
    pub cgroup_root_number: u32,
    /// `struct task_struct`: `pid`.
    pub task_pid: u32,
    /// `struct task_struct`: `cgroups`.
    pub task_cgroups: u32,
    /// `struct css_set`: `subsys[memory_cgrp_id]`.
    pub css_set_memory: u32,
    /// `struct mm_struct`: `owner`.
    pub mm_owner: u32,
    /// `struct kernfs_node`: `id`, before 4.14 `ino`.
    pub kernfs_node_id: u32,
    /// `struct kernfs_node`: `name`.
    pub kernfs_node_name: u32,
    /// `struct kernfs_node`: `parent` or `__parent`.
    pub kernfs_node_parent: u32,
    /// `struct kernfs_node`: `priv`.
    pub kernfs_node_priv: u32,
    /// `struct kernfs_open_file`: `kn`.
    pub open_file_kn: u32,
    /// `struct kmem_cache`: `name`.
    pub kmem_cache_name: u32,
    /// `struct kmem_cache`: `object_size` and `size`.
    pub kmem_cache_object_size: u32,
    pub kmem_cache_size: u32,
    /// `struct kmem_cache`: `flags`.
    pub kmem_cache_flags: u32,

    // --- limits ---
    /// `struct mem_cgroup`: the limits of a `LimitRecord`, in its order.
    pub limit_at: [u32; LIMITS],
    /// `struct mem_cgroup`: usage of its counters, by slot.
    pub usage_at: [u32; COUNTERS],
    /// `struct cgroup`: `subsys[memory_cgrp_id]`.
    pub cgroup_memory_css: u32,
    /// `struct mem_cgroup`: `css`.
    pub memcg_css: u32,
    /// `struct mem_cgroup`: what says whether kernel memory is accounted, and how many bytes of it
    /// to read (1 or 4).
    pub memcg_kmem_state: u32,
    pub memcg_kmem_state_bytes: u32,
    /// `struct cgroup`: `nr_populated_csets` or `populated_cnt`.
    pub cgroup_populated: u32,
    /// `struct cgroup`: `nr_descendants`.
    pub cgroup_descendants: u32,
    /// `struct cgroup`: head of the list of children.
    pub cgroup_children: u32,
    /// `struct cftype`: `name`, where it is an array.
    pub cftype_name: u32,
    pub limit_args: LimitArguments,
    pub kmem_limit_args: KmemLimitArguments,

    // --- argument positions ---
    /// User charge path: `memcg`, `nr_pages`, `gfp_mask`.
    pub user_charge_memcg: u32,
    pub user_charge_pages: u32,
    pub user_charge_gfp: u32,
    /// 1 where the memcg argument is a `struct mem_cgroup **` that is filled in on return.
    pub user_charge_memcg_is_out: u32,
    /// `struct mm_struct *`, whose owner is charged where the former points to nothing.
    pub user_charge_mm: u32,
    /// How many arguments it has: where fexit finds the return value.
    pub user_charge_args: u32,

    // --- tracepoint records: offsets of fields ---
    pub memcg_state_id: u32,
    pub memcg_state_item: u32,
    pub memcg_state_val: u32,
    pub memcg_lruvec_id: u32,
    pub memcg_lruvec_item: u32,
    pub memcg_lruvec_val: u32,
    /// `cgroup` events: `root`, `level`, `id`, `path`.
    pub cgroup_root: u32,
    pub cgroup_lvl: u32,
    pub cgroup_id: u32,
    pub cgroup_path: u32,
    /// `cgroup_attach_task`: `dst_root`, `dst_level`, `dst_id`, `dst_path`, `pid`.
    pub attach_root: u32,
    pub attach_lvl: u32,
    pub attach_id: u32,
    pub attach_path: u32,
    pub attach_pid: u32,
    /// Slab events by name: `call_site`, `ptr`, `bytes_req`, `bytes_alloc`, `gfp_flags`, `accounted`, `name`.
    pub cache_alloc: SlabFields,
    pub kmalloc: SlabFields,
    pub cache_free: SlabFields,
    pub kfree: SlabFields,

    // --- what a stat item counts ---
    /// `enum memcg_stat_item` values that add to a slot, by slot − `SLOT_STAT_ANON`.
    pub state_items: [[i32; ITEMS]; 4],
    /// The same for `enum node_stat_item` values of `mod_memcg_lruvec_state`.
    pub lruvec_items: [[i32; ITEMS]; 4],

    // --- slab attribution ---
    /// `struct page`: its size, `compound_head`, `flags`, `page_type`.
    pub page_size: u32,
    pub page_compound_head: u32,
    pub page_flags: u32,
    /// Bit number of `PG_slab`.
    pub page_flag_slab: u32,
    /// [`ABSENT`] where slab pages are told by a flag.
    pub page_type: u32,
    /// `PGTY_slab`: the upper byte of `page_type`.
    pub page_type_slab: u32,
    /// `struct slab` (or `struct page` before 5.17): `slab_cache`, `freelist`, `slab_list`.
    pub slab_cache: u32,
    pub slab_freelist: u32,
    pub slab_list: u32,
    /// The vector of payers: `obj_exts`, `memcg_data` or `obj_cgroups`.
    pub slab_vector: u32,
    /// Bytes between its elements, where the slab does not say it.
    pub vector_stride: u32,
    /// `struct slab`: `stride`, and the bits of the word there that are it; [`ABSENT`]: no such thing.
    pub slab_stride: u32,
    pub slab_stride_mask: u32,
    /// The payer in an element.
    pub vector_objcg: u32,
    /// Word and bit of `obj_exts_in_object`; [`ABSENT`]: no such thing. In the same word, the bit of
    /// `obj_exts_needs_objcg`, without which the elements are no payers; 0: no such thing.
    pub slab_in_object: u32,
    pub slab_in_object_mask: u32,
    pub slab_needs_objcg_mask: u32,
    /// Word of `objects`, and where in it that is; where KFENCE may hand out objects, alone in their slab
    /// and anywhere in it. [`ABSENT`] where it does not.
    pub slab_objects: u32,
    pub slab_objects_shift: u32,
    pub slab_objects_mask: u32,
    /// `struct obj_cgroup`: `memcg`.
    pub objcg_memcg: u32,
    /// `struct mem_cgroup`: `css.serial_nr`, greater than that of every older cgroup.
    pub memcg_serial: u32,
    /// `struct mem_cgroup`: `objcg`, what its objects are charged to while it lives.
    pub memcg_objcg: u32,
    /// Where there is one for each node instead: `nodeinfo`, and `struct mem_cgroup_per_node`: `objcg`.
    pub memcg_nodeinfo: u32,
    pub per_node_objcg: u32,
    /// Nodes that there can be (`nr_node_ids`).
    pub nodes: u32,
    /// `struct kmem_cache`: `node`, `oo`, `min`; `struct kmem_cache_node`: `partial.next`.
    pub kmem_cache_node: u32,
    pub kmem_cache_oo: u32,
    pub kmem_cache_min: u32,
    pub node_partial: u32,
    /// `struct task_struct`: `flags`, `mm`, and, where it counts softirqs beside the preempt count
    /// (PREEMPT_RT), `softirq_disable_cnt`.
    pub task_flags: u32,
    pub task_mm: u32,
    /// `HARDIRQ_MASK`: where the preempt count has interrupts.
    pub hardirq_bits: u32,
    pub task_softirqs: u32,
    /// `__GFP_ACCOUNT` and `SLAB_ACCOUNT`.
    pub gfp_account: u32,
    pub slab_account: u32,
    /// 1: booted with `cgroup.memory=nokmem`.
    pub nokmem: u32,
    /// 1: add up slab by payer, asker, cache, call site and cause.
    pub attribute_slab: u32,
    /// 1: this kernel charges objects later too (`kmem_cache_charge`), and no program sees it: their
    /// frees tell.
    pub late_charges_unseen: u32,
    pub slab_paths: SlabPaths,

    // --- hierarchy ---
    /// The tracepoints' `root` number of the memory hierarchy (0 on v2); [`ABSENT`]: take all.
    pub hierarchy_id: u32,

    // --- switches ---
    /// 1 where `bpf_probe_read_kernel` is allowed.
    pub can_read: u32,
    /// 1: send a record for each counter change.
    pub stream_counters: u32,
    pub stream_user_charges: u32,
    pub stream_state: u32,
    pub stream_slab: u32,
    pub stream_limits: u32,
    /// Wake userspace when this many bytes wait in a ring.
    pub wake_bytes: u32,
    /// CPU number → its ring: rings − 1, a power of two less one, at most 3.
    pub rings_mask: u32,

    // --- totals ---
    /// Places of cgroups in the totals.
    pub places: u32,
    /// Places of keys in the slab sums.
    pub slab_places: u32,
    /// 1: userspace may turn switches while the programs run.
    pub may_switch: u32,
    /// Type id of a struct that begins with a `long`: what memory is read as by `bpf_rdonly_cast`. 0:
    /// read by helper.
    pub cast_to: u32,
    /// CPU number → copy of the totals: copies − 1, a power of two less one.
    pub copies_mask: u32,

    // --- probes inside a function ---
    /// Bytes that `page_counter_try_charge` has pushed onto its stack where its probe stands.
    pub try_charge_depth: u32,
    /// The same for the user charge path.
    pub user_charge_depth: u32,
}

/// Arguments of the handlers of limit files.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::IntoBytes, zerocopy::Immutable))]
pub struct LimitArguments {
    /// `struct kernfs_open_file *`.
    pub open_file: u32,
    /// `struct cgroup *`, or `struct cgroup_subsys_state *` where `cgroup_is_css` is 1.
    pub cgroup: u32,
    pub cgroup_is_css: u32,
    /// `struct cftype *`.
    pub cftype: u32,
    /// The text, and its length.
    pub text: u32,
    pub text_len: u32,
    /// How many there are: where fexit finds the return value.
    pub count: u32,
}

/// Arguments of `memcg_update_kmem_limit` and `memcg_update_kmem_max`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::IntoBytes, zerocopy::Immutable))]
pub struct KmemLimitArguments {
    /// `struct mem_cgroup *`, or `struct cgroup *` where `target_is_cgroup` is 1.
    pub target: u32,
    pub target_is_cgroup: u32,
    pub value: u32,
    pub count: u32,
}

/// Where the functions that hand out slab objects without an event have what a program needs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::IntoBytes, zerocopy::Immutable))]
pub struct SlabPaths {
    /// 1 where `kmem_cache_alloc_bulk` returns a `bool`; it is the number of objects elsewhere.
    pub bulk_returns_bool: u32,
    /// How many arguments `__kfree_rcu_sheaf` has: where fexit finds its result.
    pub sheaf_args: u32,
    /// The same of `kmalloc_nolock`, and the position of its `gfp_t`.
    pub nolock_args: u32,
    pub nolock_gfp: u32,
}

/// Offsets of the fields of one slab tracepoint, or positions of its raw arguments.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(zerocopy::IntoBytes, zerocopy::Immutable))]
pub struct SlabFields {
    pub call_site: u32,
    pub object: u32,
    pub bytes_req: u32,
    pub bytes_alloc: u32,
    pub gfp: u32,
    pub accounted: u32,
    pub cache: u32,
    pub name: u32,
}

impl SlabFields {
    pub const NONE: Self = Self {
        call_site: ABSENT,
        object: ABSENT,
        bytes_req: ABSENT,
        bytes_alloc: ABSENT,
        gfp: ABSENT,
        accounted: ABSENT,
        cache: ABSENT,
        name: ABSENT,
    };
}

impl Config {
    /// Nothing known, everything off: what the object holds before userspace fills it in.
    pub const UNSET: Self = Self {
        roots: [Root {
            id: 0,
            level: 0,
            reserved: 0,
        }; ROOTS],
        roots_len: 0,
        page_counter_parent: ABSENT,
        memcg_counter: [ABSENT; 4],
        memcg_css_ss: ABSENT,
        memcg_css_cgroup: ABSENT,
        cgroup_level: ABSENT,
        cgroup_kn: ABSENT,
        cgroup_ancestors: ABSENT,
        cgroup_ancestors_are_ids: 0,
        cgroup_root_member: ABSENT,
        cgroup_root_number: ABSENT,
        task_pid: ABSENT,
        task_cgroups: ABSENT,
        css_set_memory: ABSENT,
        mm_owner: ABSENT,
        kernfs_node_id: ABSENT,
        kernfs_node_name: ABSENT,
        kernfs_node_parent: ABSENT,
        kernfs_node_priv: ABSENT,
        open_file_kn: ABSENT,
        kmem_cache_name: ABSENT,
        kmem_cache_object_size: ABSENT,
        kmem_cache_size: ABSENT,
        kmem_cache_flags: ABSENT,
        memory_cgrp_subsys: 0,
        own_cgroup: 0,
        kernfs_node_id_mask: u64::MAX,
        limit_at: [ABSENT; LIMITS],
        usage_at: [ABSENT; COUNTERS],
        cgroup_memory_css: ABSENT,
        memcg_css: ABSENT,
        memcg_kmem_state: ABSENT,
        memcg_kmem_state_bytes: 0,
        cgroup_populated: ABSENT,
        cgroup_descendants: ABSENT,
        cgroup_children: ABSENT,
        cftype_name: ABSENT,
        limit_args: LimitArguments {
            open_file: ABSENT,
            cgroup: ABSENT,
            cgroup_is_css: 0,
            cftype: ABSENT,
            text: ABSENT,
            text_len: ABSENT,
            count: ABSENT,
        },
        kmem_limit_args: KmemLimitArguments {
            target: ABSENT,
            target_is_cgroup: 0,
            value: ABSENT,
            count: ABSENT,
        },
        vmemmap_base: 0,
        page_offset_base: 0,
        bulk_alloc: 0,
        per_cpu_offset: 0,
        preempt_count: 0,
        user_charge_memcg: ABSENT,
        user_charge_pages: ABSENT,
        user_charge_gfp: ABSENT,
        user_charge_memcg_is_out: 0,
        user_charge_mm: ABSENT,
        user_charge_args: ABSENT,
        memcg_state_id: ABSENT,
        memcg_state_item: ABSENT,
        memcg_state_val: ABSENT,
        memcg_lruvec_id: ABSENT,
        memcg_lruvec_item: ABSENT,
        memcg_lruvec_val: ABSENT,
        cgroup_root: ABSENT,
        cgroup_lvl: ABSENT,
        cgroup_id: ABSENT,
        cgroup_path: ABSENT,
        attach_root: ABSENT,
        attach_lvl: ABSENT,
        attach_id: ABSENT,
        attach_path: ABSENT,
        attach_pid: ABSENT,
        cache_alloc: SlabFields::NONE,
        kmalloc: SlabFields::NONE,
        cache_free: SlabFields::NONE,
        kfree: SlabFields::NONE,
        state_items: [[-1; ITEMS]; 4],
        lruvec_items: [[-1; ITEMS]; 4],
        page_size: ABSENT,
        page_compound_head: ABSENT,
        page_flags: ABSENT,
        page_flag_slab: ABSENT,
        page_type: ABSENT,
        page_type_slab: ABSENT,
        slab_cache: ABSENT,
        slab_freelist: ABSENT,
        slab_list: ABSENT,
        slab_vector: ABSENT,
        vector_stride: ABSENT,
        slab_stride: ABSENT,
        slab_stride_mask: 0,
        vector_objcg: ABSENT,
        slab_in_object: ABSENT,
        slab_in_object_mask: 0,
        slab_needs_objcg_mask: 0,
        slab_objects: ABSENT,
        slab_objects_shift: 0,
        slab_objects_mask: 0,
        objcg_memcg: ABSENT,
        memcg_serial: ABSENT,
        memcg_objcg: ABSENT,
        memcg_nodeinfo: ABSENT,
        per_node_objcg: ABSENT,
        nodes: 0,
        kmem_cache_node: ABSENT,
        kmem_cache_oo: ABSENT,
        kmem_cache_min: ABSENT,
        node_partial: ABSENT,
        task_flags: ABSENT,
        task_mm: ABSENT,
        hardirq_bits: 0,
        task_softirqs: ABSENT,
        gfp_account: 0,
        slab_account: 0,
        nokmem: 0,
        attribute_slab: 0,
        late_charges_unseen: 0,
        slab_paths: SlabPaths {
            bulk_returns_bool: 0,
            sheaf_args: ABSENT,
            nolock_args: ABSENT,
            nolock_gfp: ABSENT,
        },
        hierarchy_id: ABSENT,
        can_read: 0,
        stream_counters: 0,
        stream_user_charges: 0,
        stream_state: 0,
        stream_slab: 0,
        stream_limits: 0,
        wake_bytes: 0,
        rings_mask: 0,
        places: 0,
        slab_places: 0,
        may_switch: 0,
        cast_to: 0,
        copies_mask: 0,
        try_charge_depth: 0,
        user_charge_depth: 0,
    };
}
