//! Free objects at hand for one CPU, which `/proc/slabinfo` counts as in use: how many there may be at
//! most, by `/sys/kernel/slab`.

use std::{collections::HashMap, path::Path};

use super::{cpus, slabinfo::SlabCache};
use crate::kernel::file::{self, FileError, LineError};

/// Full sheaves that a node keeps for its CPUs (`MAX_FULL_SHEAVES`, mm/slub.c, 6.18 and later).
const FULL_SHEAVES: u64 = 10;
/// Sheaves of one CPU: the main and the spare one, and that of objects that wait for an RCU grace
/// period (`struct slub_percpu_sheaves`, mm/slub.c).
const SHEAVES_A_CPU: u64 = 3;

/// Who has lists: slabs of a cache are on those of CPUs; full sheaves on those of nodes too.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub cpus: u64,
    pub nodes: u64,
}

impl Machine {
    /// This one.
    ///
    /// # Errors
    /// [`FileError`], where the kernel does not list its CPUs.
    pub fn here() -> Result<Self, FileError> {
        let nodes = file::read_as(
            Path::new("/sys/devices/system/node/possible"),
            cpus::parse_list,
        );
        Ok(Self {
            cpus: cpus::possible()?.len() as u64,
            // Without NUMA there is no such file, and one node.
            nodes: nodes.map_or(1, |nodes| nodes.len() as u64),
        })
    }
}

/// Objects of each cache, by name, that may lie on such lists now. A cache whose lists the kernel
/// does not show (SLAB, SLUB without `CONFIG_SLUB_DEBUG`, accounted caches before 5.9) is not
/// among them.
pub fn at_most(caches: &[SlabCache], machine: Machine) -> HashMap<String, u64> {
    let mut found = HashMap::new();
    for cache in caches {
        let dir = Path::new("/sys/kernel/slab").join(&cache.name);
        // There the caches of each cgroup have lists of their own (5.8 and earlier).
        if dir.join("cgroup").exists() {
            continue;
        }
        if let Ok(slabs) = file::read_as(&dir.join("cpu_slabs"), parse) {
            let capacity = file::read_as(&dir.join("sheaf_capacity"), parse).unwrap_or(0);
            *found.entry(cache.name.clone()).or_default() +=
                objects(slabs, cache.objects_per_slab, capacity, machine);
        }
    }
    found
}

/// `cpu_slabs` are the slabs that CPUs allocate from, with their partial ones
/// (`show_slab_objects`, mm/slub.c).
fn objects(slabs: u64, objects_per_slab: u64, sheaf_capacity: u64, machine: Machine) -> u64 {
    let sheaves = SHEAVES_A_CPU * machine.cpus + FULL_SHEAVES * machine.nodes;
    slabs
        .saturating_mul(objects_per_slab)
        .saturating_add(sheaf_capacity.saturating_mul(sheaves))
}

/// Parses what one of these files says: a sum, and the sum of each node after it (`22 N0=20 N1=2`).
///
/// # Errors
/// [`LineError`], where it does not begin with a number.
pub fn parse(bytes: &[u8]) -> Result<u64, LineError> {
    file::words(bytes.trim_ascii_end())
        .next()
        .and_then(file::number)
        .ok_or_else(|| LineError::new(1, "not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_stands_before_the_nodes() {
        assert_eq!(parse(b"22 N0=20 N1=2\n").unwrap(), 22);
        assert_eq!(parse(b"0\n").unwrap(), 0);
        parse(b"").unwrap_err();
        parse(b"N0=1\n").unwrap_err();
    }

    #[test]
    fn slabs_of_cpus_and_sheaves_hold_so_many_at_most() {
        let machine = Machine { cpus: 2, nodes: 1 };
        assert_eq!(objects(3, 21, 0, machine), 63);
        // Two CPUs' three sheaves, and ten of the node.
        assert_eq!(objects(0, 21, 60, machine), 16 * 60);
        assert_eq!(objects(u64::MAX, 21, 60, machine), u64::MAX);
    }

    #[test]
    fn a_cache_of_which_the_kernel_shows_no_lists_is_left_out() {
        let cache = SlabCache {
            name: "no such cache/../..".to_owned(),
            active_objects: 1,
            objects: 1,
            object_bytes: 8,
            objects_per_slab: 1,
            pages_per_slab: 1,
            active_slabs: 1,
            slabs: 1,
        };
        let machine = Machine { cpus: 1, nodes: 1 };
        assert!(at_most(&[cache], machine).is_empty());
    }
}
