//! What the programs add up, read: through mappings, or handed out where the kernel has none.

use std::cell::Cell;

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{HashMap as KernelHashMap, Map, MapData},
};
use kmem_trace_ebpf::{
    handed as wire,
    sums::{Cache, SlabKey, SlabSums},
    totals::{Place, TALLIES, Totals},
};

use super::{handed, mapping::Mapped};

/// The arrays, each but the first with a copy for each CPU, place by place.
#[derive(Debug)]
pub enum Kept {
    Mapped {
        cgroups: Mapped<Place>,
        totals: Mapped<Totals>,
        tally: Mapped<u64>,
        slab: Box<Slab>,
    },
    /// No slab is attributed there.
    Handed {
        places: usize,
        copies: usize,
        /// Places up to the last that was ever seen taken.
        used: Cell<usize>,
    },
}

/// Sums of slab, each with a copy for each CPU, place by place.
#[derive(Debug)]
pub struct Slab {
    pub(super) keys: Mapped<SlabKey>,
    pub(super) sums: Mapped<SlabSums>,
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
            slab: Box::new(Slab {
                keys: Mapped::new(take("SLAB_KEYS")?, keys).context("map SLAB_KEYS")?,
                sums,
                caches: KernelHashMap::try_from(take("CACHES")?).context("map CACHES")?,
            }),
        })
    }

    /// Loads the program that hands them out.
    ///
    /// # Errors
    /// Where the kernel does not take it.
    pub fn handed(ebpf: &mut Ebpf, places: usize, copies: usize) -> Result<Self> {
        handed::load(ebpf)?;
        Ok(Self::Handed {
            places,
            copies,
            used: Cell::new(0),
        })
    }

    /// The places, whose each is, to the last that is taken.
    ///
    /// # Errors
    /// Where they are not handed out.
    pub fn places(&self, ebpf: &Ebpf) -> Result<Vec<Place>> {
        match self {
            Self::Mapped { cgroups, .. } => {
                Ok((0..cgroups.elements()).map(|at| cgroups.get(at)).collect())
            }
            Self::Handed { places, used, .. } => {
                let step = handed::at_once::<Place>();
                let found = taken_of(*places, used.get(), step, |first, count| {
                    handed::elements::<Place>(ebpf, wire::CGROUPS, first, count)
                })?;
                used.set(found.len().max(used.get()));
                Ok(found)
            }
        }
    }

    /// The places that are taken, and their totals summed over the CPUs.
    ///
    /// # Errors
    /// Where they are not handed out.
    pub fn taken(&self, ebpf: &Ebpf) -> Result<Vec<(Place, Totals)>> {
        let is_taken = |cgroup: &Place| cgroup.cgroup_id != 0;
        match self {
            Self::Mapped {
                cgroups, totals, ..
            } => {
                let places = cgroups.elements();
                Ok((0..places)
                    .map(|place| (place, cgroups.get(place)))
                    .filter(|(_, cgroup)| is_taken(cgroup))
                    .map(|(place, cgroup)| (cgroup, sum(totals.copies(place, places))))
                    .collect())
            }
            Self::Handed { places, copies, .. } => {
                let cgroups = self.places(ebpf)?;
                let mut sums = vec![Totals::default(); cgroups.len()];
                for copy in 0..*copies {
                    let own = handed::elements(ebpf, wire::TOTALS, copy * places, cgroups.len())?;
                    for (whole, one) in sums.iter_mut().zip(own) {
                        add(whole, &one);
                    }
                }
                let all = cgroups.into_iter().zip(sums);
                Ok(all.filter(|(cgroup, _)| is_taken(cgroup)).collect())
            }
        }
    }

    /// The totals at one place, summed over the CPUs.
    ///
    /// # Errors
    /// Where they are not handed out.
    pub fn at(&self, ebpf: &Ebpf, place: usize) -> Result<Totals> {
        match self {
            Self::Mapped {
                totals, cgroups, ..
            } => Ok(sum(totals.copies(place, cgroups.elements()))),
            Self::Handed { places, copies, .. } => {
                let mut whole = Totals::default();
                for copy in 0..*copies {
                    for one in handed::elements(ebpf, wire::TOTALS, copy * places + place, 1)? {
                        add(&mut whole, &one);
                    }
                }
                Ok(whole)
            }
        }
    }

    /// One tally, summed over the CPUs.
    ///
    /// # Errors
    /// Where it is not handed out.
    pub fn tally(&self, ebpf: &Ebpf, which: u32) -> Result<u64> {
        Ok(self.tallies(ebpf, which)?.iter().sum())
    }

    /// One of the tallies, as each CPU has it.
    ///
    /// # Errors
    /// Where it is not handed out.
    pub fn tallies(&self, ebpf: &Ebpf, which: u32) -> Result<Vec<u64>> {
        match self {
            Self::Mapped { tally, .. } => {
                Ok(tally.copies(which as usize, TALLIES as usize).collect())
            }
            Self::Handed { copies, .. } => {
                let all = TALLIES as usize * copies;
                let tally: Vec<u64> = handed::elements(ebpf, wire::TALLY, 0, all)?;
                Ok(tally
                    .iter()
                    .skip(which as usize)
                    .step_by(TALLIES as usize)
                    .copied()
                    .collect())
            }
        }
    }

    /// The sums of slab, where slab is attributed.
    pub fn slab(&self) -> Option<&Slab> {
        match self {
            Self::Mapped { slab, .. } => Some(slab),
            Self::Handed { .. } => None,
        }
    }
}

impl Slab {
    /// Those that hold anything, summed over the CPUs.
    pub fn held(&self) -> impl Iterator<Item = (SlabKey, SlabSums)> {
        (0..self.keys.elements()).filter_map(move |place| {
            let key = self.keys.get(place);
            if key.taken == 0 {
                return None;
            }
            let sum = self.at(place);
            // Nothing counted yet: its key may still be on its way.
            (sum != SlabSums::default()).then_some((SlabKey { taken: 0, ..key }, sum))
        })
    }

    /// Those at a place, summed over the CPUs.
    pub(super) fn at(&self, place: usize) -> SlabSums {
        let mut sum = SlabSums::default();
        for one in self.sums.copies(place, self.keys.elements()) {
            sum.allocated += one.allocated;
            sum.allocated_bytes += one.allocated_bytes;
            sum.freed += one.freed;
            sum.freed_bytes += one.freed_bytes;
        }
        // Objects of one size are counted alone.
        let size = u64::from(self.keys.get(place).size);
        if size != 0 {
            sum.allocated_bytes = sum.allocated * size;
            sum.freed_bytes = sum.freed * size;
        }
        sum
    }

    /// Names of the caches.
    pub fn caches(&self) -> &KernelHashMap<MapData, u64, Cache> {
        &self.caches
    }
}

/// The places up to the last that is taken, read `step` at a time. Free places are given out from
/// the first on, and those given back before any that nobody had: a whole step of free ones beyond
/// the `used` is the end.
fn taken_of(
    places: usize,
    used: usize,
    step: usize,
    mut read: impl FnMut(usize, usize) -> Result<Vec<Place>>,
) -> Result<Vec<Place>> {
    let mut found = Vec::new();
    while found.len() < places {
        let more = read(found.len(), step.min(places - found.len()))?;
        let nobody = more.iter().all(|place| place.cgroup_id == 0);
        if more.is_empty() || nobody && found.len() >= used {
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

    fn read_from(ids: &[u64], used: usize, step: usize) -> Vec<u64> {
        let read = |first: usize, count: usize| {
            Ok(ids[first..first + count]
                .iter()
                .map(|id| Place {
                    cgroup_id: *id,
                    ..Place::default()
                })
                .collect())
        };
        let taken = taken_of(ids.len(), used, step, read).expect("all can be read");
        taken.iter().map(|place| place.cgroup_id).collect()
    }

    #[test]
    fn places_are_read_to_the_last_that_is_taken_and_no_further_than_a_step_of_free_ones() {
        assert_eq!(read_from(&[7, 8, 9, 0, 0, 0, 0, 0], 0, 2), [7, 8, 9]);
        // One that was given back keeps its number.
        assert_eq!(read_from(&[7, 0, 9, 0, 0, 0], 0, 2), [7, 0, 9]);
        assert_eq!(read_from(&[7, 8, 9], 0, 2), [7, 8, 9]);
        assert_eq!(read_from(&[0, 0, 0], 0, 2), [0_u64; 0]);
    }

    #[test]
    fn a_step_of_places_given_back_does_not_hide_those_behind_it() {
        let ids = [7, 8, 0, 0, 9, 0, 0, 0];
        assert_eq!(read_from(&ids, 5, 2), [7, 8, 0, 0, 9]);
        assert_eq!(read_from(&[7, 8, 0, 0, 0, 0, 0, 0], 5, 2), [7, 8]);
    }
}
