//! An array map of the kernel, mapped: read, and cleared, without a system call.
//!
//! A look-up by system call would keep the kernel from running kprobe and tracepoint programs on
//! its CPU meanwhile (`bpf_disable_instrumentation`, include/linux/bpf.h).

use std::{
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
};

use anyhow::{Context as _, Result, bail};
use aya::{Pod, maps::Map};
use memmap2::{MmapOptions, MmapRaw};

/// The elements of a `BPF_F_MMAPABLE` array.
#[derive(Debug)]
pub struct Mapped<T> {
    memory: MmapRaw,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Pod> Mapped<T> {
    /// Maps the `len` elements of `map`.
    ///
    /// # Errors
    /// Where it is no array, or the kernel does not map it.
    pub fn new(map: Map, len: usize) -> Result<Self> {
        // Its descriptor may go: the mapping keeps the map.
        let Map::Array(map) = map else {
            bail!("not an array map");
        };
        let bytes = len * Self::stride();
        let memory = MmapOptions::new()
            .len(bytes)
            .map_raw(map.fd().as_fd().as_raw_fd())
            .with_context(|| format!("the kernel does not map {bytes} bytes of an array map"))?;
        Ok(Self {
            memory,
            len,
            elements: PhantomData,
        })
    }

    /// Bytes from one element to the next (`array->elem_size`, kernel/bpf/arraymap.c).
    fn stride() -> usize {
        size_of::<T>().next_multiple_of(8)
    }

    pub fn elements(&self) -> usize {
        self.len
    }

    /// The copies of what is at `place`, one a CPU, where each CPU has `places` elements of its own.
    pub fn copies(&self, place: usize, places: usize) -> impl Iterator<Item = T> {
        (place..self.len)
            .step_by(places)
            .map(|index| self.get(index))
    }

    /// An element as it is now, each word of it whole.
    ///
    /// # Panics
    /// Where there are not so many.
    pub fn get(&self, index: usize) -> T {
        assert!(index < self.len, "element {index} of {}", self.len);
        // SAFETY: within the mapping, which is aligned to a page; a `Pod` has no invalid value. The
        // programs write to it meanwhile: volatile.
        unsafe {
            self.memory
                .as_ptr()
                .add(index * Self::stride())
                .cast::<T>()
                .read_volatile()
        }
    }
    /// Makes an element nothing: only what no program writes to any more.
    ///
    /// # Panics
    /// Where there are not so many.
    pub fn clear(&self, index: usize) {
        assert!(index < self.len, "element {index} of {}", self.len);
        // SAFETY: as in [`Self::get`]; zero is a value of every element of our maps.
        unsafe {
            self.memory
                .as_mut_ptr()
                .add(index * Self::stride())
                .cast::<T>()
                .write_volatile(std::mem::zeroed());
        }
    }

    /// The same for the copies of what is at `place` (see [`Self::copies`]).
    pub fn clear_copies(&self, place: usize, places: usize) {
        for index in (place..self.len).step_by(places) {
            self.clear(index);
        }
    }
}
