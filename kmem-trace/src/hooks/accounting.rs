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
