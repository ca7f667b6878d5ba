//! Free objects at hand for one CPU, which `/proc/slabinfo` counts as in use: how many there may be, by
//! `/sys/kernel/slab`.

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
struct Machine {
    cpus: u64,
    nodes: u64,
}

impl Machine {
    /// This one.
    ///
    /// # Errors
    /// [`FileError`], where the kernel does not list its CPUs.
    fn here() -> Result<Self, FileError> {
        Ok(Self {
            cpus: cpus::possible()?.len() as u64,
            nodes: cpus::possible_nodes()?.len().max(1) as u64,
        })
    }
}

/// The lists of this machine.
#[derive(Debug, Default)]
pub struct Lists {
    machine: Option<Machine>,
    /// Objects in a sheaf, by cache name.
    capacities: HashMap<String, u64>,
}

impl Lists {
    /// Nothing is known where the kernel does not list its CPUs.
    pub fn of_this_machine() -> Self {
        Self {
            machine: Machine::here().ok(),
            capacities: HashMap::new(),
        }
    }

    /// Objects of each cache, by name, that there is room for on lists now. A cache whose lists the
    /// kernel does not show (SLAB) is not among them.
    pub fn free_objects(&mut self, caches: &[SlabCache]) -> HashMap<String, u64> {
        let Some(machine) = self.machine else {
            return HashMap::new();
        };
        let mut found: HashMap<String, u64> = HashMap::new();
        for cache in caches {
            let known = if cache.active_objects == 0 {
                Some(0)
            } else {
                self.of_cache(cache, machine)
            };
            if let Some(objects) = known {
                let sum = found.entry(cache.name.clone()).or_default();
                *sum = sum.saturating_add(objects);
            }
        }
        found
    }

    fn of_cache(&mut self, cache: &SlabCache, machine: Machine) -> Option<u64> {
        let dir = Path::new("/sys/kernel/slab").join(&cache.name);
        let slabs = file::read_as(&dir.join("cpu_slabs"), parse).ok()?;
        let capacity = *self
            .capacities
            .entry(cache.name.clone())
            .or_insert_with(|| file::read_as(&dir.join("sheaf_capacity"), parse).unwrap_or(0));
        Some(room(slabs, cache.objects_per_slab, capacity, machine))
    }
}

/// Of two looks at the lists the larger for each cache that the later one knows. What lies on lists
/// counts as in use, so that it is no more than `caches` say is.
pub fn larger(
    before: &HashMap<String, u64>,
    mut now: HashMap<String, u64>,
    caches: &[SlabCache],
) -> HashMap<String, u64> {
    let mut active: HashMap<&str, u64> = HashMap::new();
    for cache in caches {
        *active.entry(&cache.name).or_default() += cache.active_objects;
    }
    for (name, objects) in &mut now {
        let most = active.get(name.as_str()).copied().unwrap_or(0);
        *objects = (*objects)
            .max(before.get(name).copied().unwrap_or(0))
            .min(most);
    }
    now
}

/// `cpu_slabs` are the slabs that CPUs allocate from, with their partial ones
/// (`show_slab_objects`, mm/slub.c, which may read one while it moves, and then says anything).
fn room(slabs: u64, objects_per_slab: u64, sheaf_capacity: u64, machine: Machine) -> u64 {
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

    fn cache(name: &str, active_objects: u64) -> SlabCache {
        SlabCache {
            name: name.to_owned(),
            active_objects,
            objects: active_objects,
            object_bytes: 8,
            objects_per_slab: 21,
            pages_per_slab: 1,
            active_slabs: 1,
            slabs: 1,
        }
    }

    #[test]
    fn slabs_of_cpus_and_sheaves_hold_so_many() {
        let machine = Machine { cpus: 2, nodes: 1 };
        assert_eq!(room(3, 21, 0, machine), 63);
        // Two CPUs' three sheaves, and ten of the node.
        assert_eq!(room(0, 21, 60, machine), 16 * 60);
        assert_eq!(room(u64::MAX, 21, 60, machine), u64::MAX);
    }

    #[test]
    fn the_larger_of_two_looks_counts_and_no_more_than_is_in_use() {
        let look = |objects: [u64; 3]| -> HashMap<String, u64> {
            let names = ["grows", "shrinks", "few"].map(str::to_owned);
            names.into_iter().zip(objects).collect()
        };
        let caches = [cache("grows", 90), cache("shrinks", 90), cache("few", 5)];
        let found = larger(&look([10, 60, u64::MAX]), look([40, 20, 30]), &caches);
        assert_eq!(found, look([40, 60, 5]));
        // Known before and not any more.
        let gone = larger(&look([10, 60, 7]), HashMap::new(), &caches);
        assert!(gone.is_empty());
    }

    #[test]
    fn a_cache_of_which_the_kernel_shows_no_lists_is_left_out() {
        let mut lists = Lists {
            machine: Some(Machine { cpus: 1, nodes: 1 }),
            ..Lists::default()
        };
        let hidden = "no such cache/../..";
        assert!(lists.free_objects(&[cache(hidden, 1)]).is_empty());
        let unused = lists.free_objects(&[cache(hidden, 0)]);
        assert_eq!(unused[hidden], 0);
        let none = Lists::default().free_objects(&[cache(hidden, 0)]);
        assert!(none.is_empty());
    }
}
