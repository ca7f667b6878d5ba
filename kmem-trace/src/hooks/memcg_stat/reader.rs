//! The program that reads words of kernel memory on request, loaded: by address, or from what a
//! cgroup's open directory leads to.

use std::{fs::File, os::fd::AsRawFd as _, path::Path};

use aya::{
    Ebpf, RawTracePointRunOptions, TestRun as _,
    maps::{Array, MapData, MapError},
    programs::RawTracePoint,
};
use kmem_trace_ebpf::{
    config::Config,
    words::{
        self, FROM_ADDRESS, Members, NO_DIRECTORY, NO_MEMCG, OTHER_DIRECTORY, OTHER_MEMCG,
        UNREADABLE, WORDS,
    },
};

use super::super::{
    allowed::cause,
    attach::{RINGS, SIZED, SMALLEST_RING},
    features::OBJECT,
    loader,
};

const PROGRAM: &str = "rt_read_words";

/// Loaded, and run only when asked.
pub struct Reader {
    ebpf: Ebpf,
    words: Array<MapData, u64>,
}

impl Reader {
    /// Loads the program.
    ///
    /// # Errors
    /// In one line, where the kernel does not take it.
    pub fn load(config: &Config, members: &Members) -> Result<Self, String> {
        // The loader keeps references for as long as the process lives: some hundred bytes.
        let config: &'static Config = Box::leak(Box::new(*config));
        let members: &'static Members = Box::leak(Box::new(*members));
        let mut ebpf = loader::with(|loader| {
            loader
                .override_global("CONFIG", config, true)
                // The loader keeps it, and not every object has it.
                .override_global("MEMBERS", members, false);
            for ring in RINGS {
                loader.map_max_entries(ring, SMALLEST_RING);
            }
            for map in SIZED {
                loader.map_max_entries(map, 1);
            }
            loader.load(OBJECT)
        })
        .map_err(|error| format!("the kernel did not take the BPF maps: {}", cause(&error)))?;
        let words = ebpf
            .take_map("STAT_WORDS")
            .and_then(|map| Array::try_from(map).ok())
            .ok_or("the object has no map STAT_WORDS")?;
        program(&mut ebpf)?
            .load()
            .map_err(|error| format!("the kernel did not take the program: {}", cause(&error)))?;
        Ok(Self { ebpf, words })
    }

    /// Words that begin `places` bytes after what `from` names of the memory cgroup `id`, whose
    /// directory `dir` is.
    ///
    /// # Errors
    /// In one line, where the directory cannot be opened, is not that cgroup, or leads nowhere.
    pub fn of_cgroup(
        &mut self,
        dir: &Path,
        id: u64,
        from: u64,
        places: &[u64],
    ) -> Result<Vec<u64>, String> {
        let open =
            File::open(dir).map_err(|error| format!("cannot open {}: {error}", dir.display()))?;
        let fd = u64::from(open.as_raw_fd().cast_unsigned());
        self.run([fd, id, from], places)
    }

    /// Kernel memory at an address.
    ///
    /// # Errors
    /// In one line, where there is none.
    pub fn bytes(&mut self, address: u64, count: usize) -> Result<Vec<u8>, String> {
        let words: Vec<u64> = (0..count.div_ceil(8) as u64)
            .map(|word| address.wrapping_add(word * 8))
            .collect();
        let found = self.run([0, 0, FROM_ADDRESS], &words)?;
        let mut bytes: Vec<u8> = found.into_iter().flat_map(u64::to_le_bytes).collect();
        bytes.truncate(count);
        Ok(bytes)
    }

    fn run(&mut self, arguments: [u64; 3], places: &[u64]) -> Result<Vec<u64>, String> {
        if places.len() > WORDS {
            return Err(format!("{} words at once, at most {WORDS}", places.len()));
        }
        let map = |error: MapError| format!("map STAT_WORDS: {}", cause(&error));
        for (slot, place) in (0_u32..).zip(places) {
            self.words.set(slot, place, 0).map_err(map)?;
        }
        let mut options = RawTracePointRunOptions::new();
        options.args[..3].copy_from_slice(&arguments);
        options.args[3] = places.len() as u64;
        let result = program(&mut self.ebpf)?
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
            UNREADABLE => "there is nothing where it leads to",
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
