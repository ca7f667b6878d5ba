//! How this kernel's memory accounting works, as far as figures depend on it: from its types and
//! symbols, never from its version.
//!
//! Only facts. What a fact does to a bound is in [`crate::reconcile`]; what may be written is
//! decided elsewhere.

use crate::kernel::btf::KernelBtf;

/// Cgroups that a CPU's stock of charged pages is kept for at a time (`struct memcg_stock_pcp`:
/// `cached` is one pointer, or an array on later kernels).
pub fn cached_per_cpu(btf: Option<&KernelBtf>) -> u64 {
    let cached = btf.and_then(|btf| btf.member("memcg_stock_pcp", "cached").ok());
    u64::from(cached.and_then(|member| member.array_len).unwrap_or(1))
}

/// Payers that a CPU keeps bytes of the two slab counters of a cgroup for at a time: up to a page of
/// each (`mod_objcg_state`). 0 where the kernel passes them on at once, or where nobody can tell.
pub fn slab_cached_per_cpu(btf: Option<&KernelBtf>) -> u64 {
    const KEPT: &str = "nr_slab_unreclaimable_b";
    let Some(btf) = btf else {
        return 0;
    };
    // `obj_stock`: one for tasks and one for interrupts.
    [
        ("obj_stock_pcp", 1),
        ("obj_stock", 2),
        ("memcg_stock_pcp", 1),
    ]
    .iter()
    .find(|(stock, _)| btf.has_member(stock, KEPT))
    .map_or(0, |(stock, copies)| {
        let cached = btf.member(stock, "cached_objcg").ok();
        copies * u64::from(cached.and_then(|member| member.array_len).unwrap_or(1))
    })
}

/// Pages that can wait in one CPU's batches on their way to and from the LRU lists (mm/swap.c).
///
/// Batches for rotating and for mlock stand outside the structure on some kernels: two more.
pub fn batched_per_cpu(btf: Option<&KernelBtf>) -> u64 {
    // The most any kernel so far has.
    const MOST: u64 = 31 * 10;
    btf.and_then(|btf| {
        [
            ("cpu_fbatches", "folio_batch", "folios"),
            ("lru_pvecs", "pagevec", "pages"),
        ]
        .iter()
        .find_map(|(all, batch, pages)| {
            let batches =
                u64::from(btf.size_of(all).ok()?) / u64::from(btf.size_of(batch).ok()?.max(1));
            let pages = u64::from(btf.member(batch, pages).ok()?.array_len?);
            Some((batches + 2) * pages)
        })
    })
    .unwrap_or(MOST)
}

/// Whether reading `memory.stat` first flushes what CPUs keep to themselves: with rstat, whose
/// per-CPU part remembers what it has handed on. `false` where nobody can tell.
pub fn flushes_stat(btf: Option<&KernelBtf>) -> bool {
    btf.is_some_and(|btf| btf.has_member("memcg_vmstats_percpu", "state_prev"))
}

/// When this kernel accounts a v1 cgroup's kernel memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// From the cgroup's birth, unless booted with `cgroup.memory=nokmem`.
    AlwaysOn(LimitWrite),
    /// From the first write to `memory.kmem.limit_in_bytes`.
    OnDemand,
    /// Nothing that tells was found.
    Unknown,
}

/// What a write to `memory.kmem.limit_in_bytes` does where accounting is always on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitWrite {
    /// It limits: charges beyond it fail, and it is refused below the usage.
    Limits,
    /// Nothing.
    Nothing,
    /// One of the two.
    Unknown,
}

/// Only there while a write switches accounting on.
const ON_DEMAND: &[&str] = &[
    "memcg_activate_kmem",
    "__memcg_activate_kmem",
    "memcg_propagate_kmem",
];
/// Only there since it is always on.
const ALWAYS_ON: &[&str] = &[
    "memcg_update_kmem_max",
    "mem_cgroup_charge_skmem",
    "mem_cgroup_sk_charge",
    "obj_cgroup_charge",
];
/// Either: it was the writer's name before and after.
const WRITER: &str = "memcg_update_kmem_limit";
/// Charges the counter that the limit is of; later kernels only count in it.
const LIMITED_CHARGE: &str = "__memcg_kmem_charge";

/// Symbols that [`kmem_switch`] asks for.
pub fn symbols_wanted() -> Vec<&'static str> {
    [ON_DEMAND, ALWAYS_ON, &[WRITER, LIMITED_CHARGE]].concat()
}

/// When kernel memory is accounted, from `struct mem_cgroup` and from symbols; `symbol` says
/// whether there is one of that name.
pub fn kmem_switch(btf: Option<&KernelBtf>, symbol: &dyn Fn(&str) -> bool) -> Switch {
    let member = |name: &str| btf.is_some_and(|btf| btf.has_member("mem_cgroup", name));
    let any = |names: &[&str]| names.iter().any(|name| symbol(name));
    // A flag for each cgroup says that there are cgroups without accounting.
    if [
        "kmem_account_flags",
        "kmem_acct_active",
        "kmem_acct_activated",
    ]
    .iter()
    .any(|name| member(name))
        || any(ON_DEMAND)
    {
        return Switch::OnDemand;
    }
    if any(ALWAYS_ON) || btf.is_some_and(|btf| btf.has_struct("obj_cgroup")) || member("kmem_state")
    {
        // With the sum of all kernel memory as an item, the limit's counter lost its limit.
        let counted = btf.is_some_and(|btf| btf.enum_value(None, "MEMCG_KMEM").is_ok());
        return Switch::AlwaysOn(match () {
            () if any(&["memcg_update_kmem_max", WRITER, LIMITED_CHARGE]) => LimitWrite::Limits,
            () if counted => LimitWrite::Nothing,
            () => LimitWrite::Unknown,
        });
    }
    if symbol(WRITER) {
        Switch::OnDemand
    } else {
        Switch::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(symbols: &[&str]) -> Switch {
        kmem_switch(None, &|name| symbols.contains(&name))
    }

    #[test]
    fn kernels_are_told_apart_by_what_they_have() {
        // 3.10, whatever the compiler inlined, and 4.4.
        assert_eq!(
            on(&["memcg_update_kmem_limit", "memcg_propagate_kmem"]),
            Switch::OnDemand
        );
        assert_eq!(on(&["memcg_update_kmem_limit"]), Switch::OnDemand);
        assert_eq!(on(&["memcg_activate_kmem"]), Switch::OnDemand);
        // 4.9 and 4.19.
        let limits = Switch::AlwaysOn(LimitWrite::Limits);
        assert_eq!(
            on(&["memcg_update_kmem_limit", "mem_cgroup_charge_skmem"]),
            limits
        );
        assert_eq!(
            on(&["memcg_update_kmem_max", "mem_cgroup_charge_skmem"]),
            limits
        );
        // 5.10, with the writer inlined.
        assert_eq!(
            on(&[
                "__memcg_kmem_charge",
                "mem_cgroup_charge_skmem",
                "obj_cgroup_charge"
            ]),
            limits
        );
        // 6.1 without type information.
        let unknown = Switch::AlwaysOn(LimitWrite::Unknown);
        assert_eq!(
            on(&["mem_cgroup_charge_skmem", "obj_cgroup_charge"]),
            unknown
        );
    }

    #[test]
    fn a_kernel_that_shows_nothing_is_not_guessed_at() {
        assert_eq!(on(&[]), Switch::Unknown);
    }

    #[test]
    fn every_symbol_asked_about_is_among_the_wanted() {
        let asked = std::cell::RefCell::new(Vec::new());
        kmem_switch(None, &|name| {
            asked.borrow_mut().push(name.to_owned());
            name == "obj_cgroup_charge"
        });
        let wanted = symbols_wanted();
        assert!(!asked.borrow().is_empty());
        assert!(
            asked
                .borrow()
                .iter()
                .all(|name| wanted.contains(&name.as_str()))
        );
    }
}
