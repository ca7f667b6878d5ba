//! Places of the kernel-side sums, given back once nothing is added to them any more, and the
//! switches that programs look at while they run.
//!
//! What a place held is read and cleared through the mapping, and given back by a program that is
//! run on request: a system call on the map would keep kprobe programs from running meanwhile (see
//! [`super::mapping`]). Where arrays are not mapped, [`super::handed`] does all three. Whose a place
//! was, and who inherits what it held, is the session's to know.

use anyhow::{Context as _, Result};
use aya::{Ebpf, RawTracePointRunOptions, TestRun as _, maps::Stack, programs::RawTracePoint};
use kmem_trace_ebpf::{
    sums::{SlabKey, SlabSums},
    totals::{FILL, FILL_MOST, FILL_SLAB, FORGET_SLAB, GIVE_BACK, GIVE_BACK_SLAB, Totals},
};

use super::{
    attach::Attached,
    features::{Feature, Lacking},
    handed,
    kept::{Kept, Slab},
};

const PROGRAM: &str = "rt_give_back";

/// Loads the program; without it (the kernel runs programs on request since 5.10) places stay taken.
pub(super) fn load(ebpf: &mut Ebpf, lacking: &Lacking) {
    if lacking.lacks(Feature::RunOnRequest) {
        return;
    }
    let loaded = program(ebpf).map(RawTracePoint::load);
    if let Some(Err(error)) = loaded {
        log::debug!("places cannot be given back: {error}");
    }
}

fn program(ebpf: &mut Ebpf) -> Option<&mut RawTracePoint> {
    ebpf.program_mut(PROGRAM)?.try_into().ok()
}

impl Attached {
    /// Places of cgroups that the kernel has let go of, and their ids.
    ///
    /// # Errors
    /// Where the kernel does not hand them out.
    pub fn released(&self) -> Result<Vec<(usize, u64)>> {
        let places = (0..).zip(self.kept.places(&self.ebpf)?);
        Ok(places
            .filter(|(_, it)| it.cgroup_id != 0 && it.released != 0)
            .map(|(place, it)| (place, it.cgroup_id))
            .collect())
    }

    /// Takes the totals of a released cgroup out of their place, which is free from then on.
    ///
    /// # Errors
    /// Where the kernel does not hand them out, or clear them.
    pub fn take_totals(&mut self, place: usize) -> Result<Totals> {
        let taken = self.kept.at(&self.ebpf, place)?;
        match &self.kept {
            Kept::Mapped {
                cgroups, totals, ..
            } => {
                totals.clear_copies(place, cgroups.elements());
                cgroups.clear(place);
                self.run(GIVE_BACK, place);
            }
            Kept::Handed { copies, .. } => handed::give_back(&self.ebpf, place, *copies)?,
        }
        Ok(taken)
    }

    /// Places of slab sums with keys that `wanted` accepts.
    pub fn slab_places(&self, wanted: impl Fn(&SlabKey) -> bool) -> Vec<usize> {
        let Some(Slab { keys, .. }) = self.kept.slab() else {
            return Vec::new();
        };
        (0..keys.elements())
            .filter(|place| {
                let key = keys.get(*place);
                key.taken != 0 && wanted(&key)
            })
            .collect()
    }

    /// Whether so many places of slab sums were taken at a time: they are given out from the first on.
    /// True for as long as the last of them is taken.
    pub fn slab_reached(&self, places: usize) -> bool {
        let keys = self.kept.slab().map(|slab| &slab.keys);
        keys.is_some_and(|keys| {
            let last = places.saturating_sub(1);
            last < keys.elements() && keys.get(last).taken != 0
        })
    }

    /// Places of slab sums that are taken, and the objects that came and went there.
    pub fn slab_moved(&self) -> impl Iterator<Item = (usize, u64)> {
        let slab = self.kept.slab().into_iter();
        slab.flat_map(|slab| {
            let taken = |place: &usize| slab.keys.get(*place).taken != 0;
            (0..slab.keys.elements()).filter(taken).map(|place| {
                let sums = slab.at(place);
                (place, sums.allocated.wrapping_add(sums.freed))
            })
        })
    }

    /// Keeps programs from finding a place of the slab sums from now on; those that run still add
    /// to it. False where it was not to be found already.
    pub fn forget_slab(&mut self, place: usize) -> bool {
        self.run(FORGET_SLAB, place)
    }

    /// Takes the sums out of a place that was forgotten longer ago than a program runs; it is free
    /// from then on. `None` where no slab is attributed.
    pub fn take_slab(&mut self, place: usize) -> Option<(SlabKey, SlabSums)> {
        let slab = self.kept.slab()?;
        let (key, sums) = (slab.keys.get(place), slab.at(place));
        slab.sums.clear_copies(place, slab.keys.elements());
        slab.keys.clear(place);
        self.run(GIVE_BACK_SLAB, place);
        Some((SlabKey { taken: 0, ..key }, sums))
    }

    /// Turns one of the switches on, for good.
    ///
    /// # Errors
    /// From the kernel; never seen.
    pub fn switch(&mut self, which: u32) -> Result<(), aya::maps::MapError> {
        self.switches.set(which, 1, 0)
    }

    fn run(&mut self, what: u64, place: usize) -> bool {
        run(&mut self.ebpf, [what, place as u64, 0])
    }
}

fn run(ebpf: &mut Ebpf, arguments: [u64; 3]) -> bool {
    let mut options = RawTracePointRunOptions::new();
    options.args[..3].copy_from_slice(&arguments);
    let ran = program(ebpf).and_then(|program| program.test_run(options).ok());
    ran.is_some_and(|result| result.return_value == 1)
}

/// Puts the numbers of all places into a map of free ones. A system call for each of them takes
/// longer than all programs do to load.
///
/// # Errors
/// From the map.
pub(super) fn fill(ebpf: &mut Ebpf, free: Free, places: u32) -> Result<()> {
    let mut left = places;
    while left > 0 {
        let count = left.min(FILL_MOST);
        if !run(ebpf, [free.what, u64::from(left - 1), u64::from(count)]) {
            break;
        }
        left -= count;
    }
    if left == 0 {
        return Ok(());
    }
    // The kernel does not run programs on request.
    let map = ebpf.map_mut(free.map).context("the object has no such map");
    let mut map = Stack::<_, u32>::try_from(map.context(free.map)?).context(free.map)?;
    for place in (0..left).rev() {
        map.push(place, 0).context(free.map)?;
    }
    Ok(())
}

/// A map of free places.
#[derive(Clone, Copy)]
pub(super) struct Free {
    map: &'static str,
    what: u64,
}

pub(super) const FREE: Free = Free {
    map: "FREE",
    what: FILL,
};

pub(super) const SLAB_FREE: Free = Free {
    map: "SLAB_FREE",
    what: FILL_SLAB,
};
