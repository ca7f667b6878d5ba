//! What the programs add up, read: through mappings, or handed out where the kernel has none.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{HashMap as KernelHashMap, Map, MapData},
};
use kmem_trace_ebpf::{
    handed,
    sums::{Cache, SlabKey, SlabSums},
    totals::{Place, TALLIES, Totals},
};

use super::{
    handed::{at_once, elements, load},
    mapping::Mapped,
};

/// The arrays, each of the latter with a copy for each CPU, place by place.
#[derive(Debug)]
pub enum Kept {
    Mapped {
        cgroups: Mapped<Place>,
        totals: Mapped<Totals>,
        tally: Mapped<u64>,
        slab: Slab,
    },
    /// By their numbers of places and copies. No slab is attributed there.
    Handed { places: usize, copies: usize },
}

/// The same of slab.
#[derive(Debug)]
pub struct Slab {
    keys: Mapped<SlabKey>,
    sums: Mapped<SlabSums>,
    caches: KernelHashMap<MapData, u64, Cache>,
}

impl Kept {
    /// Takes the maps over.
    ///
    /// # Errors
    /// Where one is not there, or the kernel does not map it.
    pub fn mapped(ebpf: &mut Ebpf, places: usize, keys: usize, copies: usize) -> Result<Self> {
        let mut take = |name: &str| -> Result<Map> {
            ebpf.take_map(name)
                .with_context(|| format!("the object has no map {name}"))
        };
        let totals = Mapped::new(take("TOTALS")?, places * copies).context("map TOTALS")?;
        let tally = Mapped::new(take("TALLY")?, TALLIES as usize * copies).context("map TALLY")?;
        let sums = Mapped::new(take("SLAB_SUMS")?, keys * copies).context("map SLAB_SUMS")?;
        Ok(Self::Mapped {
            cgroups: Mapped::new(take("CGROUPS")?, places).context("map CGROUPS")?,
            totals,
            tally,
            slab: Slab {
                keys: Mapped::new(take("SLAB_KEYS")?, keys).context("map SLAB_KEYS")?,
                sums,
                caches: KernelHashMap::try_from(take("CACHES")?).context("map CACHES")?,
            },
        })
    }

    /// Loads the program that hands them out.
    ///
    /// # Errors
    /// Where the kernel does not take it.
    pub fn handed(ebpf: &mut Ebpf, places: usize, copies: usize) -> Result<Self> {
        load(ebpf)?;
        Ok(Self::Handed { places, copies })
    }

    /// The places that are taken, and their totals summed over the CPUs.
    ///
    /// # Errors
    /// Where they are not handed out.
    pub fn taken(&self, ebpf: &Ebpf) -> Result<Vec<(Place, Totals)>> {
        let mut found = Vec::new();
        match self {
            Self::Mapped {
                cgroups, totals, ..
            } => {
                let places = cgroups.elements();
                for place in 0..places {
                    let cgroup = cgroups.get(place);
                    if cgroup.cgroup_id != 0 {
                        found.push((cgroup, sum(totals.copies(place, places))));
                    }
                }
            }
            Self::Handed { places, copies } => {
                let cgroups = taken_of(*places, at_once::<Place>(), |first, count| {
                    elements::<Place>(ebpf, handed::CGROUPS, first, count)
                })?;
                let mut sums = vec![Totals::default(); cgroups.len()];
                for copy in 0..*copies {
                    let first = copy * places;
                    let own = elements(ebpf, handed::TOTALS, first, cgroups.len())?;
                    for (whole, one) in sums.iter_mut().zip(own) {
                        add(whole, &one);
                    }
                }
                found.extend(
                    cgroups
                        .into_iter()
                        .zip(sums)
                        .filter(|(cgroup, _)| cgroup.cgroup_id != 0),
                );
            }
        }
        Ok(found)
    }

    /// One tally, summed over the CPUs.
    ///
    /// # Errors
    /// Where it is not handed out.
    pub fn tally(&self, ebpf: &Ebpf, which: u32) -> Result<u64> {
        match self {
            Self::Mapped { tally, .. } => Ok(tally.copies(which as usize, TALLIES as usize).sum()),
            Self::Handed { copies, .. } => {
                let all = TALLIES as usize * copies;
                let tally: Vec<u64> = elements(ebpf, handed::TALLY, 0, all)?;
                Ok(tally
                    .iter()
                    .skip(which as usize)
                    .step_by(TALLIES as usize)
                    .sum())
            }
        }
    }

    /// The slab sums that hold anything, summed over the CPUs.
    pub fn slab(&self) -> Vec<(SlabKey, SlabSums)> {
        let Self::Mapped { slab, .. } = self else {
            return Vec::new();
        };
        let places = slab.keys.elements();
        let mut found = Vec::new();
        for place in 0..places {
            let key = slab.keys.get(place);
            if key.taken == 0 {
                continue;
            }
            let mut sum = SlabSums::default();
            for one in slab.sums.copies(place, places) {
                sum.allocated += one.allocated;
                sum.allocated_bytes += one.allocated_bytes;
                sum.freed += one.freed;
                sum.freed_bytes += one.freed_bytes;
            }
            // Nothing counted yet: its key may still be on its way.
            if sum != SlabSums::default() {
                found.push((SlabKey { taken: 0, ..key }, sum));
            }
        }
        found
    }

    /// Names of slab caches, where slab is attributed.
    pub fn caches(&self) -> Option<&KernelHashMap<MapData, u64, Cache>> {
        match self {
            Self::Mapped { slab, .. } => Some(&slab.caches),
            Self::Handed { .. } => None,
        }
    }
}

/// The places up to the last that is taken, read `step` at a time. Free places are given out from
/// the first on and those given back go first, so a whole step that nobody took is the end.
fn taken_of(
    places: usize,
    step: usize,
    mut read: impl FnMut(usize, usize) -> Result<Vec<Place>>,
) -> Result<Vec<Place>> {
    let mut found = Vec::new();
    while found.len() < places {
        let more = read(found.len(), step.min(places - found.len()))?;
        let nobody = more.iter().all(|place| place.cgroup_id == 0);
        if more.is_empty() || nobody {
            break;
        }
        found.extend(more);
    }
    while found.last().is_some_and(|place| place.cgroup_id == 0) {
        found.pop();
    }
    Ok(found)
}

fn sum(copies: impl Iterator<Item = Totals>) -> Totals {
    let mut sum = Totals::default();
    for one in copies {
        add(&mut sum, &one);
    }
    sum
}

fn add(sum: &mut Totals, one: &Totals) {
    for slot in 0..sum.charged.len() {
        sum.charged[slot] = sum.charged[slot].wrapping_add(one.charged[slot]);
        sum.uncharged[slot] = sum.uncharged[slot].wrapping_add(one.uncharged[slot]);
    }
    sum.user_charges += one.user_charges;
    sum.user_refusals += one.user_refusals;
    sum.largest = sum.largest.max(one.largest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_from(ids: &[u64], step: usize) -> Vec<u64> {
        let read = |first: usize, count: usize| {
            Ok(ids[first..first + count]
                .iter()
                .map(|id| Place {
                    cgroup_id: *id,
                    parent_id: 0,
                })
                .collect())
        };
        let taken = taken_of(ids.len(), step, read).expect("all can be read");
        taken.iter().map(|place| place.cgroup_id).collect()
    }

    #[test]
    fn places_are_read_to_the_last_that_is_taken_and_no_further_than_a_step_of_free_ones() {
        assert_eq!(read_from(&[7, 8, 9, 0, 0, 0, 0, 0], 2), [7, 8, 9]);
        // One that was given back keeps its number.
        assert_eq!(read_from(&[7, 0, 9, 0, 0, 0], 2), [7, 0, 9]);
        assert_eq!(read_from(&[7, 8, 9], 2), [7, 8, 9]);
        assert_eq!(read_from(&[0, 0, 0], 2), [0_u64; 0]);
    }
}
