//! What released cgroups held, moved to those who inherit it, and their places given back: however
//! many cgroups come and go, kernel-side maps and this process hold what lives.
//!
//! The kernel lets go of a cgroup after the last charge to it is undone, and its programs say so in
//! its place and by a record. Once all records before that one are applied, nothing names it any
//! more but objects that it asked for and nobody pays for.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use anyhow::Result;
use kmem_trace_ebpf::{sums::SLAB_KEYS, totals::Totals};

use super::{Session, grace::Grace};
use crate::{
    ledger::{
        book,
        slab::{self, SlabReading},
    },
    stream::source,
};

/// Released cgroups that keep their names for the slab that they still hold, at most.
const HOLDERS: usize = 256;
/// The part of all places that they keep among them, at most: the rest is for those that live.
const HOLDERS_PART: usize = 4;
/// How often these are looked at.
const HOLDERS_LOOK: Duration = Duration::from_secs(1);
/// How often keys of forgotten cgroups are looked for: the programs go on naming cgroups that are
/// remembered by what outlives them, and each such free makes a key again.
const SWEEP: Duration = Duration::from_secs(1);

/// What was taken out of the kernel, and what is on its way.
#[derive(Default)]
pub(super) struct Retired {
    /// By who inherited.
    pub(super) totals: HashMap<u64, Totals>,
    pub(super) slab: SlabReading,
    /// Pages that may be missing from the ledger, of cgroups that nobody could name.
    pub(super) nameless_pages: u64,
    /// Something was released since the last look.
    pub(super) is_due: bool,
    /// When released places were first seen, on the programs' clock.
    noticed: HashMap<usize, u64>,
    /// Released by their records.
    pub(super) ids: Vec<u64>,
    /// Released, and still paying for slab.
    holders: HashSet<u64>,
    looked: Option<Instant>,
    /// When keys of forgotten cgroups were last looked for.
    swept: Option<Instant>,
    /// Places of slab sums that are no longer found by their keys.
    pub(super) forgotten: Grace,
}

impl Session {
    /// Retires what was released. Records older than `settled_ns` are applied: those that are still to
    /// come would be put down to cgroups that are no longer known.
    ///
    /// # Errors
    /// Where the kernel does not hand totals out.
    pub fn retire(&mut self, settled_ns: u64) -> Result<()> {
        let late = self.retired.looked.map(|at| at.elapsed() >= HOLDERS_LOOK);
        let look = late.unwrap_or(true) && !self.retired.holders.is_empty();
        if std::mem::take(&mut self.retired.is_due) || look {
            let places = self.attached.released()?;
            let mut ids: HashSet<u64> = std::mem::take(&mut self.retired.ids).into_iter().collect();
            let now_ns = source::now_ns();
            for (place, id) in places {
                // Its record is applied, and so are those before it; or was lost long ago.
                let noticed = *self.retired.noticed.entry(place).or_insert(now_ns);
                if !ids.contains(&id) && noticed > settled_ns {
                    self.retired.is_due = true;
                    continue;
                }
                self.retired.noticed.remove(&place);
                if self.retire_totals(place, id)? {
                    ids.insert(id);
                } else {
                    ids.remove(&id);
                }
            }
            ids.extend(self.retired.holders.drain());
            self.retired.holders = self.holders(&ids);
            self.retired.looked = Some(Instant::now());
            for id in ids {
                if !self.retired.holders.contains(&id) {
                    self.retire_cgroup(id);
                }
            }
            self.forget_slab();
        }
        let swept = self.retired.swept;
        if swept.is_none_or(|at| at.elapsed() >= SWEEP) || self.is_slab_short() {
            self.forget_slab();
        }
        self.evict_slab();
        self.retire_slab();
        Ok(())
    }

    /// Which of these slab is still charged to, if that is told apart from what their heirs hold;
    /// where they are many, those that hold most.
    fn holders(&self, ids: &HashSet<u64>) -> HashSet<u64> {
        if !self.plan.slab || ids.is_empty() || !super::slab::tells_the_dead(&self.plan) {
            return HashSet::new();
        }
        // What each holds, in bytes, and the rows that its name takes.
        let mut held: HashMap<u64, (i64, usize)> = HashMap::new();
        for (key, sums) in self.slab_reading() {
            if ids.contains(&key.payer) {
                let bytes = sums.allocated_bytes.wrapping_sub(sums.freed_bytes);
                held.entry(key.payer).or_default().0 += bytes.cast_signed();
            }
            let names = [
                Some(key.payer),
                Some(key.asker).filter(|id| *id != key.payer),
            ];
            for id in names.into_iter().flatten().filter(|id| ids.contains(id)) {
                held.entry(id).or_default().1 += 1;
            }
        }
        let mut most: Vec<(i64, usize, u64)> = held
            .into_iter()
            .map(|(id, (bytes, places))| (bytes, places, id))
            .filter(|(bytes, ..)| *bytes > 0)
            .collect();
        most.sort_unstable_by_key(|it| std::cmp::Reverse(*it));
        let mut left = SLAB_KEYS as usize / HOLDERS_PART;
        most.into_iter()
            .take(HOLDERS)
            .filter(|(_, places, _)| {
                let fits = *places <= left;
                left -= if fits { *places } else { 0 };
                fits
            })
            .map(|(.., id)| id)
            .collect()
    }

    fn is_target(&self, id: u64) -> bool {
        self.request.targets.iter().any(|target| target.id == id)
    }

    /// Takes the totals out of a released cgroup's place; false where they stay.
    fn retire_totals(&mut self, place: usize, id: u64) -> Result<bool> {
        if self.is_target(id) {
            return Ok(false);
        }
        let is_ours = |session: &Self| {
            let mut targets = session.request.targets.iter();
            targets.any(|target| session.tree.is_within(id, target.id))
        };
        let heir = self.tree.heir(id).filter(|_| is_ours(self));
        if heir.is_none() && self.plan.exact {
            // Ours by what the programs saw, and nobody knows below whom.
            return Ok(false);
        }
        let totals = self.attached.take_totals(place)?;
        match heir {
            Some(heir) => book::add_up(self.retired.totals.entry(heir).or_default(), &totals),
            None if self.is_nameless(id) => {
                self.retired.nameless_pages += book::parted(&totals);
            }
            // Another's, by its name.
            None => {}
        }
        Ok(true)
    }

    /// Forgets a released cgroup, whose heir has its sums from now on.
    fn retire_cgroup(&mut self, id: u64) {
        // One whose place stays is still needed.
        if self.is_target(id) {
            return;
        }
        if let Some(heir) = self.tree.heir(id) {
            if let Some(totals) = self.retired.totals.remove(&id) {
                book::add_up(self.retired.totals.entry(heir).or_default(), &totals);
            }
            self.streamed.inherit(id, heir);
        }
        self.tree.forget(id);
    }

    /// Keeps the programs from finding the sums of the forgotten.
    fn forget_slab(&mut self) {
        if !self.plan.slab {
            return;
        }
        let tree = &self.tree;
        let dead = self
            .attached
            .slab_places(|key| slab::is_of_the_forgotten(key, tree));
        let waiting: HashSet<usize> = self.retired.forgotten.places().collect();
        self.forget_places(dead.into_iter().filter(|place| !waiting.contains(place)));
        slab::inherit(&mut self.retired.slab, &self.tree);
        slab::inherit(&mut self.slab_start.moment.reading, &self.tree);
        self.retired.swept = Some(Instant::now());
    }

    /// Keeps the programs from finding what is at these places.
    pub(super) fn forget_places(&mut self, places: impl IntoIterator<Item = usize>) {
        for place in places {
            if self.attached.forget_slab(place) {
                self.retired.forgotten.add(place);
            }
        }
    }

    /// Takes the sums that nobody adds to any more.
    fn retire_slab(&mut self) {
        for place in self.retired.forgotten.over() {
            let Some((key, sums)) = self.attached.take_slab(place) else {
                continue;
            };
            let heir = slab::inherited(&key, &self.tree);
            slab::add_up(&mut self.retired.slab, heir, &sums);
        }
        self.fold_slab();
    }
}
