//! Records → ledger, on one core: recorded records, dealt out to more and more cgroups.

use std::{hint::black_box, path::Path};

use bytes::{Bytes, BytesMut};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kmem_trace::{
    ledger::book::Streamed,
    stream::{
        decode::{Batch, Record},
        recording,
    },
};
use kmem_trace_ebpf::record::CounterRecord;
use zerocopy::IntoBytes as _;

/// Events in one go over the data; 4 MiB of counter records.
const EVENTS: usize = 1 << 16;

/// The counter records of a recorded trace, over and over, each moved to a cgroup drawn at random:
/// neighbours in the stream share nothing, which is the worst case for the ledger's cache lines.
fn records(cgroups: u64) -> Batch {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/6.1-v1.kmt");
    let file = Bytes::from(std::fs::read(file).expect("the recording is in the repository"));
    let recorded = recording::read(file).expect("a recording of this version");
    let counters: Vec<CounterRecord> = recorded
        .records()
        .filter_map(|record| match record {
            Ok(Record::Counter(counter)) => Some(*counter),
            _ => None,
        })
        .collect();
    let mut bytes = BytesMut::with_capacity(EVENTS * size_of::<CounterRecord>());
    // Marsaglia's xorshift: the same draw in every run.
    let mut draw = 0x9e37_79b9_7f4a_7c15_u64;
    for record in counters.iter().cycle().take(EVENTS) {
        draw ^= draw << 13;
        draw ^= draw >> 7;
        draw ^= draw << 17;
        let moved = CounterRecord {
            // Inode numbers of a directory's children come one after the other.
            cgroup_id: 4000 + draw % cgroups,
            ..*record
        };
        bytes.extend_from_slice(moved.as_bytes());
    }
    Batch::new(bytes.freeze())
}

fn decode(criterion: &mut Criterion) {
    let batch = records(10);
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(EVENTS as u64));
    group.bench_function("alone", |bencher| {
        bencher.iter(|| {
            let mut pages = 0_u64;
            for record in black_box(&batch).records() {
                if let Ok(Record::Counter(counter)) = record {
                    pages = pages.wrapping_add(counter.pages);
                }
            }
            pages
        });
    });
    group.finish();
}

fn ledger(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ledger");
    group.throughput(Throughput::Elements(EVENTS as u64));
    for cgroups in [10, 100, 1000, 10_000] {
        let batch = records(cgroups);
        group.bench_function(BenchmarkId::from_parameter(cgroups), |bencher| {
            let mut streamed = Streamed::default();
            bencher.iter(|| {
                for record in black_box(&batch).records() {
                    if let Ok(Record::Counter(counter)) = record {
                        streamed.apply(counter);
                    }
                }
                streamed.records
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode, ledger);
criterion_main!(benches);
