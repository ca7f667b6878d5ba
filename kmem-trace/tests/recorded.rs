//! Real runs, recorded on real kernels, through everything from the wire to the residual: no
//! root, no BPF. `tests/data/KERNEL.kmt` is the stream, `KERNEL.jsonl` what the program itself
//! printed at its end; both come from `tests/kernel/recording.rs`.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use kmem_trace::{
    hooks::limits::{Accounting, Unit},
    ledger::{
        book::{Reading, Streamed, moved},
        tree::Tree,
    },
    reconcile::{
        limit::Kernel,
        usage::{Base, Bracket, Source, Terms, reconcile},
    },
    stream::{
        decode::{Batch, Record, text},
        recording,
    },
    view::event::{Event, Names},
};
use kmem_trace_ebpf::{
    record::{CounterRecord, OP_MKDIR, OP_REFUSED, OP_RELEASE, OP_RENAME, OP_RMDIR, OP_UNCHARGE},
    totals::{SLOT_KMEM, SLOT_MEMORY, SLOTS},
};
use serde_json::Value;

const PAGE_BYTES: i64 = 4096;
const EVENTS_SHOWN: usize = 40;

/// One recorded run.
struct Run {
    name: String,
    batch: Batch,
    lines: Vec<Value>,
}

/// All of `tests/data`.
fn runs() -> Vec<Run> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut paths: Vec<PathBuf> = fs::read_dir(&data)
        .expect("the test data is there")
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| path.extension() == Some(OsStr::new("kmt")))
        .collect();
    paths.sort();
    assert!(paths.len() >= 2, "a v1 and a v2 run belong here: {paths:?}");
    paths.iter().map(|path| Run::read(path)).collect()
}

impl Run {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).expect("it can be read");
        let text = fs::read_to_string(path.with_extension("jsonl")).expect("its lines are there");
        let lines = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("each line is JSON"))
            .collect();
        Self {
            name: path
                .file_stem()
                .expect("it has a name")
                .to_string_lossy()
                .into_owned(),
            batch: recording::read(bytes.into()).expect("it is a recording"),
            lines,
        }
    }

    fn records(&self) -> impl Iterator<Item = Record<'_>> {
        self.batch
            .records()
            .map(|record| record.unwrap_or_else(|error| panic!("{}: {error}", self.name)))
    }

    fn of_type<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.lines.iter().filter(move |line| line["type"] == kind)
    }

    fn summary(&self) -> &Value {
        self.of_type("summary")
            .next()
            .expect("a run ends with a summary")
    }

    /// The cgroups of the run: those reported on, and those whose life is in the stream.
    fn tree(&self) -> Tree {
        let mut tree = Tree::default();
        for report in self.of_type("report") {
            let path = report["cgroup"].as_str().expect("a name");
            tree.see(id(report), Path::new(path));
        }
        for record in self.records() {
            let Record::Cgroup(it) = record else { continue };
            let path = Path::new(OsStr::from_bytes(text(&it.path)));
            match it.op {
                OP_MKDIR => tree.see(it.cgroup_id, path),
                OP_RMDIR => tree.removed(it.cgroup_id, Some(path)),
                OP_RELEASE => tree.released(it.cgroup_id, Some(path)),
                OP_RENAME => tree.renamed(it.cgroup_id, path),
                _ => {}
            }
        }
        tree
    }

    fn streamed(&self) -> Streamed {
        let mut streamed = Streamed::default();
        for record in self.records() {
            if let Record::Counter(counter) = record {
                streamed.apply(counter);
            }
        }
        streamed
    }

    /// What the programs in the kernel added up, from the same records.
    fn reading(&self) -> Reading {
        let mut reading = Reading::new();
        for record in self.records() {
            if let Record::Counter(counter) = record {
                add(&mut reading, counter);
            }
        }
        reading
    }
}

fn add(reading: &mut Reading, record: &CounterRecord) {
    let totals = reading.entry(record.cgroup_id).or_default();
    let slot = usize::from(record.slot);
    assert!(slot < SLOTS, "slot {slot}");
    totals.largest = totals.largest.max(record.pages);
    match record.op {
        OP_REFUSED => {}
        OP_UNCHARGE => totals.uncharged[slot] += record.pages,
        _ => totals.charged[slot] += record.pages,
    }
}

fn id(line: &Value) -> u64 {
    line["cgroup_id"].as_u64().expect("an id")
}

fn number(line: &Value, key: &str) -> i64 {
    line[key]
        .as_i64()
        .unwrap_or_else(|| panic!("no {key} in {line}"))
}

#[test]
fn every_byte_of_a_recording_is_a_record() {
    for run in runs() {
        let mut bytes = 0;
        let mut kinds = BTreeMap::new();
        for record in run.records() {
            let header = record.header();
            bytes += usize::from(header.len);
            *kinds.entry(header.kind).or_insert(0) += 1;
            assert!(header.time_ns > 0 && header.cpu < 2, "{header:?}");
        }
        assert_eq!(bytes, run.batch.as_bytes().len(), "{}", run.name);
        let counters = kinds.get(&1).copied().unwrap_or(0);
        let lives = kinds.get(&6).copied().unwrap_or(0);
        assert!(counters > 100 && lives >= 2, "{}: {kinds:?}", run.name);
    }
}

#[test]
fn the_records_alone_say_what_the_kernel_side_totals_said() {
    for run in runs() {
        let (tree, streamed) = (run.tree(), run.streamed());
        let count = number(&run.summary()["stream"], "records");
        assert_eq!(streamed.records.cast_signed(), count, "{}", run.name);
        let mut moved_something = 0;
        for report in run.of_type("report").chain([run.summary()]) {
            let net = streamed.net(&tree, id(report))[SLOT_MEMORY] * PAGE_BYTES;
            assert_eq!(net, number(report, "totals_bytes"), "{}", run.name);
            moved_something += i64::from(net != 0);
        }
        assert!(moved_something > 0, "{}: nothing was held", run.name);
        assert_eq!(streamed.differences(&run.reading()), [], "{}", run.name);
    }
}

#[test]
fn the_usage_of_the_run_is_the_base_and_what_the_records_moved() {
    for run in runs() {
        let tree = run.tree();
        for report in run.of_type("report") {
            let top = id(report);
            let sums = moved(&run.reading(), &tree, &HashSet::from([top]));
            let after = sums[&top];
            let base_bytes = number(report, "ledger_bytes") - number(report, "totals_bytes");
            let terms = Terms {
                page_bytes: PAGE_BYTES.cast_unsigned(),
                online_cpus: 2,
                source: Source::Counters,
                largest_pages: after.largest,
                lost_pages: 0,
                nameless_pages: 0,
            };
            let usage_bytes = number(report, "usage_bytes").cast_unsigned();
            let bracket = Bracket {
                before: after,
                file_bytes: usage_bytes,
                after,
            };
            let base = Base {
                pages: base_bytes / PAGE_BYTES,
                ..Base::default()
            };
            let found = reconcile(&bracket, &base, &[SLOT_MEMORY], &terms);
            assert_eq!(found.residual_bytes, 0, "{} {report}", run.name);
            assert!(usage_bytes > 2 << 20, "{report}");
            // A record that is missing is a residual of as many pages.
            let mut short = run.reading();
            let totals = short.values_mut().max_by_key(|it| it.charged[SLOT_MEMORY]);
            totals.expect("there are some").charged[SLOT_MEMORY] -= 1;
            if run
                .reading()
                .iter()
                .any(|(id, totals)| short[id] != *totals && tree.is_within(*id, top))
            {
                let sums = moved(&short, &tree, &HashSet::from([top]));
                let bracket = Bracket {
                    after: sums[&top],
                    ..bracket
                };
                let found = reconcile(&bracket, &base, &[SLOT_MEMORY], &terms);
                assert_eq!(found.residual_bytes, PAGE_BYTES, "{}", run.name);
            }
        }
    }
}

#[test]
fn kernel_memory_of_a_v1_run_adds_up_to_its_own_counter() {
    let mut seen = 0;
    for run in runs() {
        let (tree, streamed) = (run.tree(), run.streamed());
        for report in run.of_type("report") {
            let counters = report["counters"].as_array().expect("a list");
            let Some(kmem) = counters.iter().find(|one| one["counter"] == "kmem") else {
                continue;
            };
            seen += 1;
            let net = streamed.net(&tree, id(report))[SLOT_KMEM] * PAGE_BYTES;
            let base = number(kmem, "ledger_bytes") - net;
            assert_eq!(number(kmem, "usage_bytes"), base + net, "{}", run.name);
            assert!(net > 0, "{}: no kernel memory was charged", run.name);
            // Only cgroups that were empty when the trace began can be that small.
            assert!((0..1 << 20).contains(&base), "{}: base {base}", run.name);
        }
    }
    assert!(seen > 0, "no v1 run in the test data");
}

#[test]
fn a_dead_cgroup_of_the_run_keeps_its_name_and_place() {
    for run in runs() {
        let tree = run.tree();
        let top = id(run.summary());
        let dead: Vec<_> = run
            .records()
            .filter_map(|record| match record {
                Record::Cgroup(it) if it.op == OP_RMDIR => Some(it.cgroup_id),
                _ => None,
            })
            .collect();
        assert!(!dead.is_empty(), "{}", run.name);
        for id in dead {
            assert_eq!(tree.name(id), "/test-recorded/second", "{}", run.name);
            assert!(tree.is_within(id, top), "{}", run.name);
        }
    }
}

/// Names as the run's tree has them.
struct TreeNames(Tree);

impl Names for TreeNames {
    fn cgroup(&self, id: u64) -> String {
        self.0.name(id).to_string_lossy().into_owned()
    }

    fn counter(&self, slot: u8) -> &'static str {
        ["memory", "kmem", "swap", "tcpmem"][usize::from(slot)]
    }

    fn item(&self, item: i32) -> String {
        format!("item {item}")
    }

    /// Nothing is known of the kernel beside its records.
    fn limits(&self, _cgroup_id: u64) -> Kernel {
        Kernel {
            is_v1: true,
            unit: Unit::Pages,
            page_bytes: PAGE_BYTES.cast_unsigned(),
            accounting: Accounting::Unknown,
            is_root: false,
        }
    }

    fn call_site(&self, address: u64) -> String {
        format!("{address:#x}")
    }
}

#[test]
fn the_first_events_of_each_run_read_as_they_happened() {
    for run in runs() {
        let names = TreeNames(run.tree());
        let first_ns = run.records().next().map(|record| record.header().time_ns);
        let shown: Vec<String> = run
            .records()
            .take(EVENTS_SHOWN)
            .map(|record| Event::of(&record, &names).line(first_ns.unwrap_or(0)))
            .collect();
        insta::assert_snapshot!(format!("events_of_{}", run.name), shown.join("\n"));
    }
}

#[test]
fn a_recording_cut_short_says_so_and_keeps_what_came_before() {
    for run in runs() {
        let whole = run.batch.as_bytes();
        let cut = Batch::new(whole.slice(..whole.len() - 8));
        let all = run.records().count();
        let (good, bad): (Vec<_>, Vec<_>) = cut.records().partition(Result::is_ok);
        assert_eq!((good.len(), bad.len()), (all - 1, 1), "{}", run.name);
        let error = bad[0].as_ref().expect_err("it is cut").to_string();
        assert!(error.contains("cut short"), "{error}");
    }
}
