//! Kernel memory by kind where no file shows it (v1): the kernel's own counters, checked against
//! what its files do show before any of them is believed. Pure.

use serde::Serialize;

use super::{explain::Circumstances, usage::STOCK_PAGES};

/// A figure under v2's name for it, in bytes.
pub type Figure = (&'static str, u64);

/// What of a cgroup's kernel memory is what; bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Kinds {
    Read {
        /// Names of the figures that were read so.
        counters: Vec<&'static str>,
        /// How late each of them can be: what waits in per-CPU counters.
        lag_bytes: u64,
        /// Kernel memory that is in none of them.
        rest_bytes: Option<i64>,
    },
    /// Why there are none, in one line.
    NotRead { why: String },
}

/// What the counters are held against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// `rss` and `cache` of `memory.stat`, subtree included.
    pub anon_bytes: u64,
    pub file_bytes: u64,
    /// `memory.kmem.usage_in_bytes`.
    pub kmem_bytes: Option<u64>,
}

/// Not a kind of kernel memory; read to check all others by.
const CHECKED: [&str; 2] = ["anon", "file"];
/// Contained in their sum, which v2 shows as `slab`.
const SLAB: [&str; 2] = ["slab_reclaimable", "slab_unreclaimable"];

/// How late one counter can be, in bytes: a batch of pages a CPU of every cgroup, and after a
/// flush as much as that leaves out.
pub fn lag_bytes(circumstances: &Circumstances) -> u64 {
    let batches = if circumstances.flushed {
        super::explain::FLUSHED_BATCHES
    } else {
        circumstances.cgroups.max(1)
    };
    [
        batches,
        STOCK_PAGES,
        circumstances.online_cpus,
        circumstances.page_bytes,
    ]
    .into_iter()
    .fold(1, u64::saturating_mul)
}

/// The figures to show, and what is to be said of them.
///
/// # Errors
/// In one line, where the counters and the files cannot be of one cgroup.
pub fn judge(
    found: &[Figure],
    files: &Files,
    lag_bytes: u64,
) -> Result<(Vec<Figure>, Kinds), String> {
    let amount = |name: &str| found.iter().find(|(it, _)| *it == name).map(|(_, it)| *it);
    for (name, shown) in CHECKED
        .into_iter()
        .zip([files.anon_bytes, files.file_bytes])
    {
        let Some(read) = amount(name) else {
            return Err(format!(
                "the counter {name} that would prove them was not found"
            ));
        };
        if read.abs_diff(shown) > lag_bytes {
            return Err(format!(
                "the counters read are not those of memory.stat ({name}: {read} B against {shown} B)"
            ));
        }
    }
    let mut kinds: Vec<Figure> = found
        .iter()
        .filter(|(name, _)| !CHECKED.contains(name))
        .copied()
        .collect();
    let all: u64 = kinds.iter().map(|(_, bytes)| *bytes).sum();
    if let Some(kmem) = files.kmem_bytes
        && all > kmem.saturating_add(lag_bytes.saturating_mul(kinds.len() as u64))
    {
        return Err(format!(
            "the counters read are more than all kernel memory ({all} B of {kmem} B)"
        ));
    }
    if let (Some(one), Some(other)) = (amount(SLAB[0]), amount(SLAB[1])) {
        kinds.insert(0, ("slab", one + other));
    }
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let said = Kinds::Read {
        counters: kinds.iter().map(|(name, _)| *name).collect(),
        lag_bytes,
        rest_bytes: files
            .kmem_bytes
            .map(|kmem| signed(kmem).saturating_sub(signed(all))),
    };
    Ok((kinds, said))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: Files = Files {
        anon_bytes: 8192,
        file_bytes: 4096,
        kmem_bytes: Some(100_000),
    };
    const FOUND: [(&str, u64); 5] = [
        ("slab_reclaimable", 10_000),
        ("slab_unreclaimable", 20_000),
        ("kernel_stack", 16_384),
        ("anon", 8192),
        ("file", 4096),
    ];

    #[test]
    fn kinds_are_shown_with_the_sum_of_slab_and_the_rest() {
        let (shown, said) = judge(&FOUND, &FILES, 0).expect("they agree");
        assert_eq!(shown[0], ("slab", 30_000));
        assert!(!shown.iter().any(|(name, _)| *name == "anon"));
        let Kinds::Read { rest_bytes, .. } = said else {
            panic!("{said:?}");
        };
        assert_eq!(rest_bytes, Some(100_000 - 46_384));
    }

    #[test]
    fn counters_that_disagree_with_memory_stat_by_more_than_the_lag_are_not_believed() {
        let other = Files {
            anon_bytes: 8192 + 4097,
            ..FILES
        };
        let why = judge(&FOUND, &other, 4096).expect_err("too far off");
        assert!(why.contains("anon") && !why.contains('\n'), "{why}");
        assert!(judge(&FOUND, &other, 4097).is_ok());
    }

    #[test]
    fn counters_beyond_all_kernel_memory_are_not_believed() {
        let less = Files {
            kmem_bytes: Some(46_383),
            ..FILES
        };
        assert!(judge(&FOUND, &less, 0).is_err());
        // Nothing to compare with is no proof of the contrary.
        let none = Files {
            kmem_bytes: None,
            ..FILES
        };
        assert!(judge(&FOUND, &none, 0).is_ok());
    }

    #[test]
    fn without_a_counter_to_check_by_nothing_is_shown() {
        assert!(judge(&FOUND[..4], &FILES, 0).is_err());
    }

    #[test]
    fn a_counter_lags_by_a_batch_a_cpu_and_cgroup_or_by_what_a_flush_leaves() {
        let quiet = crate::reconcile::captured::QUIET;
        assert_eq!(lag_bytes(&quiet), 2 * 64 * 2 * 4096);
        let flushed = Circumstances {
            flushed: true,
            ..quiet
        };
        assert_eq!(lag_bytes(&flushed), 3 * 64 * 2 * 4096);
    }
}
