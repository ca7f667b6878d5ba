//! A memory cgroup's own counters of kernel memory, which v1 shows in no file: read from the
//! kernel by a program that is run on request, where kernel reads are allowed.
//!
//! - here: an item's place found, and its counter read for a cgroup.
//! - [`reader`]: the program loaded and run.
//! - [`subsystem`]: by the same program, what tells a memory cgroup from all else.
//! - [`places`]: which counters there are and where, from type information.
//! - [`names`]: from an item's number to its name, for events.
//! - [`index`]: from an item's number to its place, on kernels that keep a table of that.

mod index;
pub mod names;
mod places;
mod reader;
pub mod subsystem;

use std::{borrow::Cow, path::Path};

use kmem_trace_ebpf::words::FROM_COUNTERS;

use self::{
    index::Index,
    places::{ITEMS, Item, Numbers, Places},
    reader::Reader,
};
use super::{
    allowed::Allowed,
    features::{Feature, Lacking, Object},
};
use crate::kernel::{
    btf::KernelBtf,
    symbols::{self, Symbols},
};

/// Symbols that say where a kernel keeps which counter is where.
pub const SYMBOLS: [&str; 2] = [index::TABLE, index::READER];

/// Why there is none.
const NOT_ON_REQUEST: &str = "this kernel runs no program on request that reads its memory (Linux 5.10 was the first that does)";

/// Whether a kernel may run the program. One that needs the old object is older than that.
pub fn runs_on_request(lacking: &Lacking) -> bool {
    !lacking.lacks(Feature::RunOnRequest) && lacking.object() == Object::Newest
}

/// The program, loaded, and what it is to read.
pub struct MemcgStat {
    reader: Reader,
    /// Items that this kernel has, and where each is in the array of counters.
    items: Vec<(&'static Item, u64)>,
}

impl MemcgStat {
    /// Resolves the places and loads the program. Of `known` symbols, those of [`SYMBOLS`] were looked
    /// for; without, the list is read where it is needed.
    ///
    /// # Errors
    /// In one line: no rights, no kernel reads, no such programs, or a place that this kernel's
    /// types do not show.
    pub fn open(
        btf: &KernelBtf,
        allowed: &Allowed,
        known: Option<&Symbols>,
    ) -> Result<Self, String> {
        let Places {
            config,
            members,
            numbers,
            counters,
        } = places::resolve(btf)?;
        allowed.reads.clone()?;
        if !runs_on_request(&allowed.lacking) {
            return Err(NOT_ON_REQUEST.to_owned());
        }
        let mut stat = Self {
            reader: Reader::load(&config, &members)?,
            items: Vec::new(),
        };
        let index = stat.index(&numbers, counters, known)?;
        for item in &ITEMS {
            if let Some(number) = numbers.of(item)
                && let Some(place) = index.place(number)
            {
                stat.items
                    .push((item, place as u64 * size_of::<u64>() as u64));
            }
        }
        Ok(stat)
    }

    /// Its counters in bytes, subtree included, under the names that v2 gives them.
    ///
    /// # Errors
    /// In one line, where the directory cannot be opened, is not the cgroup `id`, or leads nowhere.
    pub fn read(
        &mut self,
        dir: &Path,
        id: u64,
        page_bytes: u64,
    ) -> Result<Vec<(&'static str, u64)>, String> {
        let places: Vec<u64> = self.items.iter().map(|(_, place)| *place).collect();
        let found = self.reader.of_cgroup(dir, id, FROM_COUNTERS, &places)?;
        // The kernel shows a sum of CPUs that is below zero for a moment as none, too.
        let amount = |raw: u64| u64::try_from(raw.cast_signed()).unwrap_or(0);
        Ok(self
            .items
            .iter()
            .zip(found)
            .map(|((item, _), raw)| (item.name, item.unit.bytes(amount(raw), page_bytes)))
            .collect())
    }

    /// How this kernel finds an item's counter.
    fn index(
        &mut self,
        numbers: &Numbers,
        counters: usize,
        known: Option<&Symbols>,
    ) -> Result<Index, String> {
        if counters == numbers.count {
            return Ok(Index::Direct);
        }
        let has_one = |known: &&Symbols| SYMBOLS.iter().any(|name| known.address(name).is_some());
        let symbols = match known.filter(has_one) {
            Some(known) => Cow::Borrowed(known),
            // Whoever read the list may not have been told why it could not be.
            None => Cow::Owned(symbols::kallsyms(&SYMBOLS).map_err(|error| error.to_string())?),
        };
        let mut candidates: Vec<u64> = symbols.address(index::TABLE).into_iter().collect();
        if candidates.is_empty() {
            // No data symbols: the function that uses the table has its address.
            let reader = symbols.address(index::READER).ok_or_else(|| {
                format!(
                    "this kernel keeps its counters by a table, and shows the address of neither {} nor {}",
                    index::TABLE,
                    index::READER
                )
            })?;
            let code = self.reader.bytes(reader, index::CODE_BYTES)?;
            candidates = index::tables_used(&code);
        }
        for table in candidates {
            // What is no table of this kind is no table at all.
            if let Ok(bytes) = self.reader.bytes(table, numbers.count)
                && let Some(index) = Index::of_table(&bytes, counters)
            {
                return Ok(index);
            }
        }
        Err("this kernel keeps its counters by a table that was not found".to_owned())
    }
}
