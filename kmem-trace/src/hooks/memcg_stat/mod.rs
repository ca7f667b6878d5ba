//! A memory cgroup's own counters of kernel memory, which v1 shows in no file: read from the
//! kernel by a program that is run on request, where kernel reads are allowed.
//!
//! - here: the program loaded, and run for a cgroup.
//! - [`places`]: which counters there are and where, from type information.
//! - [`index`]: from an item's number to its place, on kernels that keep a table of that.

mod index;
mod places;

use std::{fs::File, os::fd::AsRawFd as _, path::Path};

use aya::{
    Ebpf, EbpfLoader, RawTracePointRunOptions, TestRun as _,
    maps::{Array, MapData},
    programs::RawTracePoint,
};
use kmem_trace_ebpf::words::{
    self, FROM_ADDRESS, FROM_COUNTERS, NO_DIRECTORY, NO_MEMCG, OTHER_DIRECTORY, OTHER_MEMCG,
    UNREADABLE, WORDS,
};

use self::{
    index::Index,
    places::{ITEMS, Item, Places},
};
use super::{
    allowed::{Allowed, cause},
    attach::OBJECT,
};
use crate::kernel::{btf::KernelBtf, security, symbols};

const PROGRAM: &str = "rt_read_words";

/// The program, loaded, and what it is to read.
pub struct MemcgStat {
    program: Ebpf,
    words: Array<MapData, u64>,
    /// Items that this kernel has, and where each is in the array of counters.
    items: Vec<(&'static Item, u64)>,
}

impl MemcgStat {
    /// Resolves the places and loads the program.
    ///
    /// # Errors
    /// In one line: no rights, no kernel reads, or a place that this kernel's types do not show.
    pub fn open(btf: &KernelBtf) -> Result<Self, String> {
        let Places {
            config,
            members,
            numbers,
            counters,
        } = places::resolve(btf)?;
        // Only the verdict on reads counts, which needs neither types nor tracefs.
        Allowed::probe(security::lockdown(), true, Ok(())).reads?;
        let mut loaded = EbpfLoader::new()
            .btf(None)
            .override_global("CONFIG", &config, true)
            .override_global("MEMBERS", &members, true)
            .map_max_entries("RING", 4096)
            .map_max_entries("PLACES", 1)
            .map_max_entries("FREE", 1)
            .map_max_entries("CGROUPS", 1)
            .map_max_entries("TOTALS", 1)
            .load(OBJECT)
            .map_err(|error| format!("the kernel did not take the BPF maps: {}", cause(&error)))?;
        let words = loaded
            .take_map("STAT_WORDS")
            .and_then(|map| Array::try_from(map).ok())
            .ok_or("the object has no map STAT_WORDS")?;
        program(&mut loaded)?
            .load()
            .map_err(|error| format!("the kernel did not take the program: {}", cause(&error)))?;
        let mut stat = Self {
            program: loaded,
            words,
            items: Vec::new(),
        };
        let index = stat.index(&numbers, counters)?;
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
        let open =
            File::open(dir).map_err(|error| format!("cannot open {}: {error}", dir.display()))?;
        let places: Vec<u64> = self.items.iter().map(|(_, place)| *place).collect();
        let fd = u64::from(open.as_raw_fd().cast_unsigned());
        let found = self.run(&places, [fd, id, FROM_COUNTERS])?;
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
    fn index(&mut self, numbers: &places::Numbers, counters: usize) -> Result<Index, String> {
        if counters == numbers.count {
            return Ok(Index::Direct);
        }
        let names = [index::TABLE, index::READER];
        let symbols = symbols::kallsyms(&names).map_err(|error| error.to_string())?;
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
            let code = self.bytes(reader, index::CODE_BYTES)?;
            candidates = index::tables_used(&code);
        }
        for table in candidates {
            // What is no table of this kind is no table at all.
            if let Ok(bytes) = self.bytes(table, numbers.count)
                && let Some(index) = Index::of_table(&bytes, counters)
            {
                return Ok(index);
            }
        }
        Err("this kernel keeps its counters by a table that was not found".to_owned())
    }

    /// Kernel memory at an address.
    fn bytes(&mut self, address: u64, count: usize) -> Result<Vec<u8>, String> {
        let words: Vec<u64> = (0..count.div_ceil(8) as u64)
            .map(|word| address.wrapping_add(word * 8))
            .collect();
        let found = self.run(&words, [0, 0, FROM_ADDRESS])?;
        let mut bytes: Vec<u8> = found.into_iter().flat_map(u64::to_le_bytes).collect();
        bytes.truncate(count);
        Ok(bytes)
    }

    fn run(&mut self, places: &[u64], arguments: [u64; 3]) -> Result<Vec<u64>, String> {
        if places.len() > WORDS {
            return Err(format!("{} words at once, at most {WORDS}", places.len()));
        }
        let map = |error: aya::maps::MapError| format!("map STAT_WORDS: {}", cause(&error));
        for (slot, place) in (0_u32..).zip(places) {
            self.words.set(slot, place, 0).map_err(map)?;
        }
        let mut options = RawTracePointRunOptions::new();
        options.args[..3].copy_from_slice(&arguments);
        options.args[3] = places.len() as u64;
        let result = program(&mut self.program)?
            .test_run(options)
            .map_err(|error| {
                format!(
                    "the kernel does not run programs on request: {}",
                    cause(&error)
                )
            })?;
        let what = match result.return_value {
            words::READ => {
                return (0_u32..)
                    .zip(places)
                    .map(|(slot, _)| self.words.get(&slot, 0).map_err(map))
                    .collect();
            }
            NO_DIRECTORY => "an open file does not lead to its directory",
            OTHER_DIRECTORY => "an open directory leads to another one",
            NO_MEMCG => "the directory leads to no memory cgroup",
            OTHER_MEMCG => "the memory cgroup is of another directory",
            UNREADABLE => "the counters cannot be read",
            _ => "nothing is where it should be",
        };
        Err(format!(
            "by this kernel's type information {what}; is it of this very kernel?"
        ))
    }
}

fn program(loaded: &mut Ebpf) -> Result<&mut RawTracePoint, String> {
    loaded
        .program_mut(PROGRAM)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| format!("the object has no program {PROGRAM}"))
}
