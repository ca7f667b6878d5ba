//! THE table: every role, its candidates (best first), what each needs and what is lost without.
//!
//! Nothing here compares a kernel version. A candidate counts if its symbols, types and
//! tracepoints are there; `doctor` prints what came of it.

pub use super::role::{Candidate, Hook, Mechanism, Need, Place, Role, Status};

macro_rules! hooks {
    ($($program:literal $place:expr, $symbol:literal;)*) => {
        &[$(Hook { symbol: $symbol, program: $program, place: $place }),*]
    };
}

use Mechanism as M;
use Place as P;

/// The user charge path by any of its names.
macro_rules! user_charge {
    ($($symbol:literal, $remark:literal;)*) => {
        &[
            $(Candidate {
                mechanism: M::Kprobe,
                hooks: hooks! {
                    "kp_user_charge" P::Inside { arguments: 4 }, $symbol;
                    "kx_user_charge" P::Returns, $symbol;
                },
                needs: &[Need::MemcgId, Need::UserChargeArguments],
                gives: Status::Exact,
                remark: $remark,
            },)*
            $(Candidate {
                mechanism: M::Kprobe,
                hooks: hooks! { "kp_user_charge" P::Kprobe, $symbol; "kr_user_charge" P::Kretprobe, $symbol; },
                needs: &[Need::MemcgId, Need::UserChargeArguments],
                gives: Status::Exact,
                remark: $remark,
            },)*
            $(Candidate {
                mechanism: M::Fentry,
                hooks: hooks! { "fx_user_charge" P::Fexit, $symbol; },
                needs: &[Need::MemcgId, Need::UserChargeArguments],
                gives: Status::Exact,
                remark: $remark,
            },)*
        ]
    };
}

/// Slab events under each mechanism, the cheapest first. Where the kernel skips what interrupts
/// itself, a second program on each takes care of that: attached first, so as to miss nothing.
macro_rules! slab_candidates {
    ($([$($raw:literal $second:literal $classic:literal $tracepoint:literal),*])*) => {
        &[
            $(Candidate {
                mechanism: M::RawTracepoint,
                hooks: hooks! {
                    $($second P::RawTracepoint, $tracepoint; $raw P::RawTracepoint, $tracepoint;)*
                },
                needs: &[Need::GuardedPrograms, Need::OwnPrograms],
                gives: Status::Exact,
                remark: "",
            },)*
            $(Candidate {
                mechanism: M::RawTracepoint,
                hooks: hooks! { $($raw P::RawTracepoint, $tracepoint;)* },
                needs: &[Need::UnguardedPrograms],
                gives: Status::Exact,
                remark: "",
            },)*
            $(Candidate {
                mechanism: M::RawTracepoint,
                hooks: hooks! { $($raw P::RawTracepoint, $tracepoint;)* },
                needs: &[],
                gives: Status::Bounded,
                remark: NESTED_SLAB,
            },)*
            $(Candidate {
                mechanism: M::Tracepoint,
                hooks: hooks! { $($classic P::Tracepoint("kmem"), $tracepoint;)* },
                needs: &[],
                gives: Status::Bounded,
                remark: NO_PAYERS,
            },)*
        ]
    };
}

/// A fentry candidate for slab objects that fire no event.
macro_rules! slab_path {
    ($($program:literal $place:expr, $symbol:literal;)*) => {
        Candidate {
            mechanism: M::Fentry,
            hooks: hooks! { $($program $place, $symbol;)* },
            needs: SLAB_PATH,
            gives: Status::Exact,
            remark: "",
        }
    };
}

/// Both ends of each handler of a limit file.
macro_rules! limit_kprobes {
    ($($symbol:literal),*) => {
        hooks! { $(
            "kp_limit_write" P::Kprobe, $symbol;
            "kr_limit_write" P::Kretprobe, $symbol;
        )* }
    };
}

const COUNTER: &[Need] = &[Need::CounterOwner, Need::MemcgId];
const GUARDED_COUNTER: &[Need] = &[Need::CounterOwner, Need::MemcgId, Need::GuardedPrograms];
const UNGUARDED_COUNTER: &[Need] = &[Need::CounterOwner, Need::MemcgId, Need::UnguardedPrograms];
const NESTING: &str = "an interrupt during a probe is not traced: pages that it frees are missed";
const NESTED_SLAB: &str = "what an interrupt allocates or frees during a program is not seen";
const NO_STOCKS: &str = "does not see pages that wait in per-CPU stocks";
const NO_PAYERS: &str = "cache names and payers need kernel reads, which are not allowed here";
const LIMIT_FILES_V1: &[Need] = &[Need::V1, Need::MemcgId, Need::LimitArguments];
const LIMIT_FILES_V2: &[Need] = &[Need::V2, Need::MemcgId, Need::LimitArguments];
const SLAB_PATH: &[Need] = &[Need::SlabPlace, Need::SlabPathArguments];
const KMEM_LIMIT: &[Need] = &[Need::V1, Need::MemcgId, Need::KmemLimitArguments];

/// Both events of a free.
const FREE_EVENTS: &[Hook] = hooks! {
    "rt_cache_free" P::RawTracepoint, "kmem_cache_free";
    "rt_kfree" P::RawTracepoint, "kfree";
};

/// All limit files of v1 have one handler.
const LIMIT_FILES_V1_KPROBE: Candidate = Candidate {
    mechanism: M::Kprobe,
    hooks: limit_kprobes!("mem_cgroup_write"),
    needs: LIMIT_FILES_V1,
    gives: Status::Exact,
    remark: "",
};
const LIMIT_FILES_V1_FENTRY: Candidate = Candidate {
    mechanism: M::Fentry,
    hooks: hooks! {
        "fe_limit_write" P::Fentry, "mem_cgroup_write";
        "fx_limit_write" P::Fexit, "mem_cgroup_write";
    },
    needs: LIMIT_FILES_V1,
    gives: Status::Exact,
    remark: "",
};
const KMEM_FROM_FILE: &str = "no memcg_update_kmem_limit or memcg_update_kmem_max here (inlined, or dropped by this kernel): told by mem_cgroup_write's file and text";

/// Roles in the order of the ledger's need for them.
pub static ROLES: &[Role] = &[
    Role {
        name: "counter.charge",
        purpose: "every page charged to a memory cgroup",
        candidates: &[
            Candidate {
                mechanism: M::Kprobe,
                hooks: hooks! {
                    "kp_counter_charge" P::Inside { arguments: 2 }, "page_counter_charge";
                    "kp_counter_try_charge" P::Inside { arguments: 2 }, "page_counter_try_charge";
                    "kx_counter_try_charge" P::Returns, "page_counter_try_charge";
                },
                needs: COUNTER,
                gives: Status::Exact,
                remark: "",
            },
            Candidate {
                mechanism: M::Kprobe,
                hooks: hooks! {
                    "kp_counter_charge" P::Kprobe, "page_counter_charge";
                    "kp_counter_try_charge" P::Kprobe, "page_counter_try_charge";
                    "kr_counter_try_charge" P::Kretprobe, "page_counter_try_charge";
                },
                needs: COUNTER,
                gives: Status::Bounded,
                remark: NESTING,
            },
            Candidate {
                mechanism: M::Fentry,
                hooks: hooks! {
                    "fe_charge_1" P::Fentry, "page_counter_charge";
                    "fe_charge_2" P::Fentry, "page_counter_charge";
                    "fx_charge_1" P::Fexit, "page_counter_charge";
                    "fx_charge_2" P::Fexit, "page_counter_charge";
                    "fe_try_charge_1" P::Fentry, "page_counter_try_charge";
                    "fe_try_charge_2" P::Fentry, "page_counter_try_charge";
                    "fx_try_charge_1" P::Fexit, "page_counter_try_charge";
                    "fx_try_charge_2" P::Fexit, "page_counter_try_charge";
                },
                needs: GUARDED_COUNTER,
                gives: Status::Exact,
                remark: "",
            },
            Candidate {
                mechanism: M::Fentry,
                hooks: hooks! {
                    "fe_counter_charge" P::Fentry, "page_counter_charge";
                    "fx_counter_try_charge" P::Fexit, "page_counter_try_charge";
                },
                needs: UNGUARDED_COUNTER,
                gives: Status::Exact,
                remark: "",
            },
            Candidate {
                mechanism: M::Fentry,
                hooks: hooks! {
                    "fe_counter_charge" P::Fentry, "page_counter_charge";
                    "fx_counter_try_charge" P::Fexit, "page_counter_try_charge";
                },
                needs: COUNTER,
                gives: Status::Bounded,
                remark: NESTING,
            },
        ],
        without: "charges are not seen one by one: usage is followed by memory.stat items (memcg.state), within a bound",
        on_request: false,
    },
    Role {
        name: "counter.uncharge",
        purpose: "every page given back",
        candidates: &[
            Candidate {
                mechanism: M::Kprobe,
                hooks: hooks! {
                    "kp_counter_uncharge" P::Inside { arguments: 2 }, "page_counter_uncharge";
                },
                needs: COUNTER,
                gives: Status::Exact,
                remark: "",
            },
            Candidate {
                mechanism: M::Kprobe,
                hooks: hooks! { "kp_counter_uncharge" P::Kprobe, "page_counter_uncharge"; },
                needs: COUNTER,
                gives: Status::Bounded,
                remark: NESTING,
            },
            Candidate {
                mechanism: M::Fentry,
                hooks: hooks! {
                    "fe_uncharge_1" P::Fentry, "page_counter_uncharge";
                    "fe_uncharge_2" P::Fentry, "page_counter_uncharge";
                    "fx_uncharge_1" P::Fexit, "page_counter_uncharge";
                    "fx_uncharge_2" P::Fexit, "page_counter_uncharge";
                },
                needs: GUARDED_COUNTER,
                gives: Status::Exact,
                remark: "",
            },
            Candidate {
                mechanism: M::Fentry,
                hooks: hooks! { "fe_counter_uncharge" P::Fentry, "page_counter_uncharge"; },
                needs: UNGUARDED_COUNTER,
                gives: Status::Exact,
                remark: "",
            },
            Candidate {
                mechanism: M::Fentry,
                hooks: hooks! { "fe_counter_uncharge" P::Fentry, "page_counter_uncharge"; },
                needs: COUNTER,
                gives: Status::Bounded,
                remark: NESTING,
            },
        ],
        without: "uncharges are not seen one by one",
        on_request: false,
    },
    Role {
        name: "memcg.state",
        purpose: "memory.stat items counted in pages: anon, file, kernel, sockets",
        candidates: &[
            // First, because classic tracepoints are skipped while any other of them runs on the
            // same CPU, and these events nest.
            Candidate {
                mechanism: M::BtfTracepoint,
                hooks: hooks! {
                    "tb_memcg_state_2" P::BtfTracepoint("memcg"), "mod_memcg_state";
                    "tb_memcg_state" P::BtfTracepoint("memcg"), "mod_memcg_state";
                    "tb_memcg_lruvec_state_2" P::BtfTracepoint("memcg"), "mod_memcg_lruvec_state";
                    "tb_memcg_lruvec_state" P::BtfTracepoint("memcg"), "mod_memcg_lruvec_state";
                    "tb_softirq_began" P::BtfTracepoint("irq"), "softirq_entry";
                    "tb_softirq_ended" P::BtfTracepoint("irq"), "softirq_exit";
                },
                needs: &[
                    Need::StatItems,
                    Need::MemcgId,
                    Need::GuardedPrograms,
                    Need::OwnPrograms,
                ],
                gives: Status::Bounded,
                remark: NO_STOCKS,
            },
            Candidate {
                mechanism: M::BtfTracepoint,
                hooks: hooks! {
                    "tb_memcg_state" P::BtfTracepoint("memcg"), "mod_memcg_state";
                    "tb_memcg_lruvec_state" P::BtfTracepoint("memcg"), "mod_memcg_lruvec_state";
                    "tb_softirq_began" P::BtfTracepoint("irq"), "softirq_entry";
                    "tb_softirq_ended" P::BtfTracepoint("irq"), "softirq_exit";
                },
                needs: &[Need::StatItems, Need::MemcgId],
                gives: Status::Bounded,
                remark: NO_STOCKS,
            },
            Candidate {
                mechanism: M::Tracepoint,
                hooks: hooks! {
                    "tp_memcg_state" P::Tracepoint("memcg"), "mod_memcg_state";
                    "tp_memcg_lruvec_state" P::Tracepoint("memcg"), "mod_memcg_lruvec_state";
                },
                needs: &[Need::StatItems],
                gives: Status::Bounded,
                remark: NO_STOCKS,
            },
        ],
        without: "without kprobes and fentry, no ledger",
        on_request: true,
    },
    Role {
        name: "charge.user",
        purpose: "who asked for pages, and was refused",
        candidates: user_charge! {
            "try_charge_memcg", "";
            "try_charge", "";
            "__mem_cgroup_try_charge", "";
            "mem_cgroup_try_charge", "page cache and anonymous pages only";
        },
        without: "limit hits and the tasks that ask are not seen",
        on_request: false,
    },
    Role {
        name: "limit.write",
        purpose: "writes to limit files",
        candidates: &[
            LIMIT_FILES_V1_KPROBE,
            LIMIT_FILES_V1_FENTRY,
            Candidate {
                mechanism: M::Kprobe,
                hooks: limit_kprobes!(
                    "memory_max_write",
                    "memory_high_write",
                    "memory_min_write",
                    "memory_low_write",
                    "swap_max_write"
                ),
                needs: LIMIT_FILES_V2,
                gives: Status::Exact,
                remark: "",
            },
            // Without swap, or before memory.min.
            Candidate {
                mechanism: M::Kprobe,
                hooks: limit_kprobes!("memory_max_write", "memory_high_write"),
                needs: LIMIT_FILES_V2,
                gives: Status::Exact,
                remark: "memory.max and memory.high alone",
            },
            Candidate {
                mechanism: M::Fentry,
                hooks: hooks! {
                    "fe_limit_write" P::Fentry, "memory_max_write";
                    "fx_limit_write" P::Fexit, "memory_max_write";
                    "fe_limit_high" P::Fentry, "memory_high_write";
                    "fx_limit_high" P::Fexit, "memory_high_write";
                    "fe_limit_min" P::Fentry, "memory_min_write";
                    "fx_limit_min" P::Fexit, "memory_min_write";
                    "fe_limit_low" P::Fentry, "memory_low_write";
                    "fx_limit_low" P::Fexit, "memory_low_write";
                    "fe_limit_swap" P::Fentry, "swap_max_write";
                    "fx_limit_swap" P::Fexit, "swap_max_write";
                },
                needs: LIMIT_FILES_V2,
                gives: Status::Exact,
                remark: "",
            },
            Candidate {
                mechanism: M::Fentry,
                hooks: hooks! {
                    "fe_limit_write" P::Fentry, "memory_max_write";
                    "fx_limit_write" P::Fexit, "memory_max_write";
                    "fe_limit_high" P::Fentry, "memory_high_write";
                    "fx_limit_high" P::Fexit, "memory_high_write";
                },
                needs: LIMIT_FILES_V2,
                gives: Status::Exact,
                remark: "memory.max and memory.high alone",
            },
        ],
        without: "limit writes are not visible",
        on_request: false,
    },
    Role {
        name: "limit.kmem",
        purpose: "changes of the kernel memory limit (v1)",
        candidates: &[
            Candidate {
                mechanism: M::Kprobe,
                hooks: hooks! {
                    "kp_limit_kmem" P::Kprobe, "memcg_update_kmem_limit";
                    "kr_limit_kmem" P::Kretprobe, "memcg_update_kmem_limit";
                },
                needs: KMEM_LIMIT,
                gives: Status::Exact,
                remark: "",
            },
            Candidate {
                mechanism: M::Kprobe,
                hooks: hooks! {
                    "kp_limit_kmem" P::Kprobe, "memcg_update_kmem_max";
                    "kr_limit_kmem" P::Kretprobe, "memcg_update_kmem_max";
                },
                needs: KMEM_LIMIT,
                gives: Status::Exact,
                remark: "",
            },
            Candidate {
                remark: KMEM_FROM_FILE,
                ..LIMIT_FILES_V1_KPROBE
            },
            Candidate {
                mechanism: M::Fentry,
                hooks: hooks! {
                    "fe_limit_kmem" P::Fentry, "memcg_update_kmem_limit";
                    "fx_limit_kmem" P::Fexit, "memcg_update_kmem_limit";
                },
                needs: KMEM_LIMIT,
                gives: Status::Exact,
                remark: "",
            },
            Candidate {
                mechanism: M::Fentry,
                hooks: hooks! {
                    "fe_limit_kmem" P::Fentry, "memcg_update_kmem_max";
                    "fx_limit_kmem" P::Fexit, "memcg_update_kmem_max";
                },
                needs: KMEM_LIMIT,
                gives: Status::Exact,
                remark: "",
            },
            Candidate {
                remark: KMEM_FROM_FILE,
                ..LIMIT_FILES_V1_FENTRY
            },
        ],
        without: "changes of the kernel memory limit are not visible",
        on_request: false,
    },
    Role {
        name: "cgroup.lifecycle",
        purpose: "cgroups made, removed, renamed; tasks moved",
        candidates: &[
            // First, because a classic tracepoint program keeps kprobes from running that interrupt it.
            Candidate {
                mechanism: M::BtfTracepoint,
                hooks: hooks! {
                    "tb_cgroup_mkdir" P::BtfTracepoint("cgroup"), "cgroup_mkdir";
                    "tb_cgroup_rmdir" P::BtfTracepoint("cgroup"), "cgroup_rmdir";
                    "tb_cgroup_release" P::BtfTracepoint("cgroup"), "cgroup_release";
                    "tb_cgroup_rename" P::BtfTracepoint("cgroup"), "cgroup_rename";
                    "tb_cgroup_attach_task" P::BtfTracepoint("cgroup"), "cgroup_attach_task";
                },
                needs: &[Need::MemcgId],
                gives: Status::Exact,
                remark: "",
            },
            Candidate {
                mechanism: M::Tracepoint,
                hooks: hooks! {
                    "tp_cgroup_mkdir" P::Tracepoint("cgroup"), "cgroup_mkdir";
                    "tp_cgroup_rmdir" P::Tracepoint("cgroup"), "cgroup_rmdir";
                    "tp_cgroup_release" P::Tracepoint("cgroup"), "cgroup_release";
                    "tp_cgroup_rename" P::Tracepoint("cgroup"), "cgroup_rename";
                    "tp_cgroup_attach_task" P::Tracepoint("cgroup"), "cgroup_attach_task";
                },
                needs: &[],
                gives: Status::Exact,
                remark: "",
            },
        ],
        without: "cgroups that come and go between two looks stay nameless",
        on_request: false,
    },
    Role {
        name: "slab.alloc",
        purpose: "slab objects allocated",
        candidates: slab_candidates!(
            // Kernels that tell allocations on a node apart (before 6.1).
            ["rt_cache_alloc" "rt_cache_alloc_2" "tp_cache_alloc" "kmem_cache_alloc",
             "rt_cache_alloc" "rt_cache_alloc_2" "tp_cache_alloc" "kmem_cache_alloc_node",
             "rt_kmalloc" "rt_kmalloc_2" "tp_kmalloc" "kmalloc",
             "rt_kmalloc" "rt_kmalloc_2" "tp_kmalloc" "kmalloc_node"]
            ["rt_cache_alloc" "rt_cache_alloc_2" "tp_cache_alloc" "kmem_cache_alloc",
             "rt_kmalloc" "rt_kmalloc_2" "tp_kmalloc" "kmalloc"]
        ),
        without: "slab allocations are not seen",
        on_request: true,
    },
    Role {
        name: "slab.free",
        purpose: "slab objects freed",
        candidates: &[
            Candidate {
                mechanism: M::RawTracepoint,
                hooks: hooks! {
                    "rt_cache_free_2" P::RawTracepoint, "kmem_cache_free";
                    "rt_cache_free" P::RawTracepoint, "kmem_cache_free";
                    "rt_kfree_2" P::RawTracepoint, "kfree";
                    "rt_kfree" P::RawTracepoint, "kfree";
                },
                needs: &[
                    Need::FreeToldBefore,
                    Need::GuardedPrograms,
                    Need::OwnPrograms,
                ],
                gives: Status::Exact,
                remark: "",
            },
            Candidate {
                mechanism: M::RawTracepoint,
                hooks: FREE_EVENTS,
                needs: &[Need::FreeToldBefore, Need::UnguardedPrograms],
                gives: Status::Exact,
                remark: "",
            },
            Candidate {
                mechanism: M::RawTracepoint,
                hooks: FREE_EVENTS,
                needs: &[Need::FreeToldBefore],
                gives: Status::Bounded,
                remark: NESTED_SLAB,
            },
            Candidate {
                mechanism: M::Fentry,
                hooks: hooks! {
                    "fe_cache_free" P::Fentry, "kmem_cache_free";
                    "fe_kfree" P::Fentry, "kfree";
                },
                needs: &[
                    Need::FreeToldAfter,
                    Need::UnguardedPrograms,
                    Need::SlabPlace,
                    Need::SlabPathArguments,
                ],
                gives: Status::Exact,
                remark: "",
            },
            Candidate {
                mechanism: M::RawTracepoint,
                hooks: FREE_EVENTS,
                needs: &[Need::FreeToldAfter],
                gives: Status::Bounded,
                remark: "what is charged and freed by kmem_cache_free counts as still there",
            },
            Candidate {
                mechanism: M::Tracepoint,
                hooks: hooks! {
                    "tp_cache_free" P::Tracepoint("kmem"), "kmem_cache_free";
                    "tp_kfree" P::Tracepoint("kmem"), "kfree";
                },
                needs: &[],
                gives: Status::Bounded,
                remark: NO_PAYERS,
            },
        ],
        without: "slab frees are not seen",
        on_request: true,
    },
    Role {
        name: "slab.bulk",
        purpose: "slab objects that come and go many at a time, with no event: skbs, maple nodes, kfree_rcu in batches",
        candidates: &[
            slab_path! {
                "fx_alloc_bulk" P::Fexit, "kmem_cache_alloc_bulk_noprof";
                "fe_free_bulk" P::Fentry, "kmem_cache_free_bulk";
            },
            slab_path! {
                "fx_alloc_bulk" P::Fexit, "kmem_cache_alloc_bulk";
                "fe_free_bulk" P::Fentry, "kmem_cache_free_bulk";
            },
        ],
        without: "what comes or goes in bulk is not attributed: see coverage and unseen",
        on_request: true,
    },
    Role {
        name: "slab.sheaf",
        purpose: "kfree_rcu into per-CPU sheaves, with no event",
        candidates: &[slab_path! { "fx_rcu_sheaf" P::Fexit, "__kfree_rcu_sheaf"; }],
        without: "where kfree_rcu puts objects into sheaves (6.18 and later), those frees are not seen",
        on_request: true,
    },
    Role {
        name: "slab.nolock",
        purpose: "slab objects of BPF maps, allocated and freed in any context with no event",
        candidates: &[
            slab_path! {
                "fx_kmalloc_nolock" P::Fexit, "_kmalloc_nolock_noprof";
                "fe_kfree_nolock" P::Fentry, "kfree_nolock";
            },
            slab_path! {
                "fx_kmalloc_nolock" P::Fexit, "kmalloc_nolock_noprof";
                "fe_kfree_nolock" P::Fentry, "kfree_nolock";
            },
        ],
        without: "where the kernel has kmalloc_nolock (6.18 and later), its objects are not seen",
        on_request: true,
    },
    Role {
        name: "slab.charge",
        purpose: "objects charged after they were made: sockets, when they are accepted",
        candidates: &[Candidate {
            mechanism: M::Fentry,
            hooks: hooks! { "fx_cache_charge" P::Fexit, "kmem_cache_charge"; },
            needs: &[Need::SlabPlace],
            gives: Status::Exact,
            remark: "",
        }],
        without: "an object that is charged later counts as charged to nobody until it is freed",
        on_request: true,
    },
    Role {
        name: "slab.socket",
        purpose: "sockets born in softirq: whom the listening socket belongs to",
        candidates: &[
            Candidate {
                mechanism: M::Fentry,
                hooks: hooks! {
                    "fe_sk_clone" P::Fentry, "sk_clone";
                    "fx_sk_clone" P::Fexit, "sk_clone";
                },
                needs: &[Need::SlabPlace],
                gives: Status::Exact,
                remark: "",
            },
            Candidate {
                mechanism: M::Fentry,
                hooks: hooks! {
                    "fe_sk_clone" P::Fentry, "sk_clone_lock";
                    "fx_sk_clone" P::Fexit, "sk_clone_lock";
                },
                needs: &[Need::SlabPlace],
                gives: Status::Exact,
                remark: "",
            },
        ],
        without: "a socket born in softirq is put down to the task that was interrupted",
        on_request: true,
    },
    Role {
        name: "slab.context",
        purpose: "softirqs and hardirq handlers, where there is no task to charge",
        candidates: &[
            Candidate {
                mechanism: M::Read,
                hooks: &[],
                needs: &[Need::PreemptCount],
                gives: Status::Exact,
                remark: "",
            },
            Candidate {
                mechanism: M::RawTracepoint,
                hooks: hooks! {
                    "rt_softirq_entry" P::RawTracepoint, "softirq_entry";
                    "rt_softirq_exit" P::RawTracepoint, "softirq_exit";
                    "rt_hardirq_entry" P::RawTracepoint, "irq_handler_entry";
                    "rt_hardirq_exit" P::RawTracepoint, "irq_handler_exit";
                    "rt_hardirq_entry" P::RawTracepoint, "local_timer_entry";
                    "rt_hardirq_exit" P::RawTracepoint, "local_timer_exit";
                    "rt_hardirq_entry" P::RawTracepoint, "call_function_entry";
                    "rt_hardirq_exit" P::RawTracepoint, "call_function_exit";
                    "rt_hardirq_entry" P::RawTracepoint, "call_function_single_entry";
                    "rt_hardirq_exit" P::RawTracepoint, "call_function_single_exit";
                    "rt_hardirq_entry" P::RawTracepoint, "irq_work_entry";
                    "rt_hardirq_exit" P::RawTracepoint, "irq_work_exit";
                },
                needs: &[],
                gives: Status::Exact,
                remark: "",
            },
            Candidate {
                mechanism: M::RawTracepoint,
                hooks: hooks! {
                    "rt_softirq_entry" P::RawTracepoint, "softirq_entry";
                    "rt_softirq_exit" P::RawTracepoint, "softirq_exit";
                    "rt_hardirq_entry" P::RawTracepoint, "irq_handler_entry";
                    "rt_hardirq_exit" P::RawTracepoint, "irq_handler_exit";
                },
                needs: &[],
                gives: Status::Bounded,
                remark: "a CPU's own interrupts (its timer, calls from other CPUs) are not told from the task",
            },
        ],
        without: "objects born in interrupts are put down to the task that was interrupted",
        on_request: true,
    },
];

/// The role of that name.
pub fn role(name: &str) -> Option<&'static Role> {
    ROLES.iter().find(|role| role.name == name)
}

/// Whether a role follows slab.
pub fn is_slab(role: &str) -> bool {
    role.starts_with("slab.")
}

/// Every hook of every candidate.
pub fn hooks() -> impl Iterator<Item = &'static Hook> {
    ROLES
        .iter()
        .flat_map(|role| role.candidates)
        .flat_map(|candidate| candidate.hooks)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_role_has_one_name_and_says_what_is_lost_without_it() {
        let names: HashSet<_> = ROLES.iter().map(|role| role.name).collect();
        assert_eq!(names.len(), ROLES.len());
        assert!(
            ROLES
                .iter()
                .all(|role| !role.without.is_empty() && !role.purpose.is_empty())
        );
    }

    #[test]
    fn every_hook_names_a_program_of_the_object() {
        let bytes = super::super::features::OBJECT;
        for hook in hooks() {
            let name = hook.program.as_bytes();
            assert!(
                bytes.windows(name.len()).any(|window| window == name),
                "{} is not in the object",
                hook.program
            );
        }
    }

    /// Such a program is loaded for one function.
    #[test]
    fn one_plan_has_a_program_of_fentry_on_one_symbol() {
        let excluded = |one: &Candidate, other: &Candidate| {
            [(Need::V1, Need::V2), (Need::V2, Need::V1)]
                .iter()
                .any(|(its, the_others)| {
                    one.needs.contains(its) && other.needs.contains(the_others)
                })
        };
        let is_for_one =
            |hook: &Hook| matches!(hook.place, P::Fentry | P::Fexit | P::BtfTracepoint(_));
        let chosen_together = |(role, one): (usize, &Candidate),
                               (others, other): (usize, &Candidate)| {
            (role != others || std::ptr::eq(one, other)) && !excluded(one, other)
        };
        let all = || {
            let candidates = |(role, it): (usize, &'static Role)| {
                it.candidates.iter().map(move |candidate| (role, candidate))
            };
            ROLES.iter().enumerate().flat_map(candidates)
        };
        for one in all() {
            for other in all().filter(|other| chosen_together(one, *other)) {
                for hook in one.1.hooks.iter().filter(|hook| is_for_one(hook)) {
                    let same = other.1.hooks.iter().filter(|it| it.program == hook.program);
                    for it in same {
                        assert_eq!(it.symbol, hook.symbol, "{}", hook.program);
                    }
                }
            }
        }
    }

    #[test]
    fn a_candidate_uses_one_mechanism() {
        for candidate in ROLES.iter().flat_map(|role| role.candidates) {
            for hook in candidate.hooks {
                let mechanism = match hook.place {
                    P::Kprobe | P::Kretprobe | P::Inside { .. } | P::Returns => M::Kprobe,
                    P::Fentry | P::Fexit => M::Fentry,
                    P::RawTracepoint => M::RawTracepoint,
                    P::Tracepoint(_) => M::Tracepoint,
                    P::BtfTracepoint(_) => M::BtfTracepoint,
                };
                assert_eq!(mechanism, candidate.mechanism, "{}", hook.program);
            }
        }
    }
}
