//! Records are decoded where they lie, and added up in what is there.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    path::Path,
};

use bytes::Bytes;
use kmem_trace::{
    ledger::book::Streamed,
    stream::{
        decode::{Batch, Record},
        recording,
    },
};

thread_local! {
    static MADE: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        MADE.set(MADE.get() + 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// All records of a batch; how many pieces of memory that took.
fn follow(batch: &Batch, streamed: &mut Streamed) -> u64 {
    let before = MADE.get();
    for record in batch.records() {
        if let Ok(Record::Counter(counter)) = record {
            streamed.apply(counter);
        }
    }
    MADE.get() - before
}

#[test]
fn records_of_known_cgroups_are_followed_without_allocating() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/6.1-v1.kmt");
    let file = Bytes::from(std::fs::read(file).expect("the recording is in the repository"));
    let batch = recording::read(file).expect("a recording of this version");
    let mut streamed = Streamed::default();
    assert!(
        follow(&batch, &mut streamed) > 0,
        "cgroups are new at first"
    );
    let records = streamed.records;
    assert_eq!(follow(&batch, &mut streamed), 0);
    assert!(records > 100 && streamed.records == 2 * records);
}
