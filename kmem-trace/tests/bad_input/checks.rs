//! What each parser owes its callers, whatever the bytes: no panic, and what it accepts is
//! consistent in itself. The property tests beside this file and the fuzz targets in `fuzz/` call
//! these same functions.

// Each fuzz target uses one of them.
#![allow(dead_code)]

use std::collections::BTreeSet;

use bytes::Bytes;
use kmem_trace::{
    hooks::site,
    kernel::{
        callsite::Functions,
        cgroupfs::{
            Hierarchy, MemoryMount, MemoryStat, mountinfo, parse_cgroups, parse_proc_cgroup,
        },
        proc::{
            cpus,
            meminfo::Meminfo,
            own, slab_lists, slabinfo, softirqs,
            system::{Cmdline, parse_pretty_name},
            zoneinfo,
        },
        security::{Lockdown, config_has},
        symbols, text,
        tracefs::{self, Tracefs},
    },
    stream::{
        decode::{Batch, Record, text as field_text},
        recording,
    },
    view::{
        event::{self, Event, Names},
        name,
    },
};

/// Names that are looked for in kallsyms.
const WANTED: [&str; 5] = [
    "page_counter_charge",
    "try_charge_memcg",
    "mem_cgroup_write",
    "memory_cgrp_subsys",
    "nft_do_chain",
];

/// A parser's check, by the name of its fuzz target.
pub type Check = fn(&[u8]);

/// All of them.
pub const ALL: [(&str, Check); 12] = [
    ("memory_stat", memory_stat),
    ("slabinfo", slabinfo),
    ("meminfo", meminfo),
    ("kallsyms", kallsyms),
    ("traceable", traceable),
    ("format", format),
    ("proc_cgroup", proc_cgroup),
    ("mountinfo", mountinfo),
    ("kcore", kcore),
    ("site", site),
    ("wire", wire),
    ("small_files", small_files),
];

/// Every item of an accepted file is there under its name, and says the same when written again.
pub fn memory_stat(bytes: &[u8]) {
    let Ok(stat) = MemoryStat::parse(bytes) else {
        return;
    };
    let mut again = String::new();
    for (name, value) in stat.items() {
        assert!(
            !name.is_empty() && !name.contains([' ', '\t', '\n']),
            "{name:?}"
        );
        assert_eq!(stat.get(name), Some(value));
        again.push_str(&format!("{name} {value}\n"));
    }
    assert_eq!(MemoryStat::parse(again.as_bytes()), Ok(stat));
}

pub fn slabinfo(bytes: &[u8]) {
    let Ok(caches) = slabinfo::parse(bytes) else {
        return;
    };
    assert!(caches.len() < lines(bytes));
    for cache in caches {
        assert!(!cache.name.is_empty() && !cache.name.contains('\n'));
        assert!(cache.pages() >= cache.slabs || cache.pages_per_slab == 0);
    }
}

pub fn meminfo(bytes: &[u8]) {
    let Ok(all) = Meminfo::parse(bytes) else {
        return;
    };
    for (kilobytes, found) in [("MemTotal", all.total()), ("Slab", all.slab())] {
        assert_eq!(all.get(kilobytes), found);
    }
    assert!(all.get("no such field:").is_none());
}

pub fn kallsyms(bytes: &[u8]) {
    let functions = Functions::parse(bytes);
    for address in [1, u64::MAX / 2, 0xffff_ffff_8100_0123, u64::MAX] {
        if let Some(name) = functions.name(address) {
            let offset = name.rsplit_once("+0x").map(|(_, offset)| offset);
            let offset = offset.and_then(|offset| u64::from_str_radix(offset, 16).ok());
            assert!(offset.is_some_and(|offset| offset < address), "{name}");
        }
    }
    let Ok(symbols) = symbols::parse_kallsyms(bytes, &WANTED) else {
        return;
    };
    let mut kept = 0;
    for (name, found) in &symbols.found {
        assert!(WANTED.contains(&name.as_str()) && !found.is_empty());
        kept += found.len();
        for symbol in found {
            assert!(symbol.address.checked_add(symbol.bytes).is_some());
            assert!(!symbols.addresses_hidden || symbol.address == 0);
        }
        let only = symbols.function(name).is_some();
        assert!(!only || symbols.has_function(name) && symbols.address(name).is_some());
    }
    for (name, twins) in &symbols.twins {
        assert!(
            twins
                .iter()
                .all(|twin| twin.starts_with(&format!("{name}.")))
        );
        kept += twins.len();
    }
    assert!(kept <= lines(bytes));
}

pub fn traceable(bytes: &[u8]) {
    let found = symbols::parse_traceable(bytes, &WANTED);
    assert!(found.iter().all(|name| WANTED.contains(&name.as_str())));
}

pub fn format(bytes: &[u8]) {
    let Ok(format) = tracefs::parse_format(bytes) else {
        return;
    };
    for field in &format.fields {
        assert!(!field.name.is_empty(), "{field:?}");
        assert!(format.field(&field.name).is_some());
        assert_eq!(field.data_loc, field.type_name.starts_with("__data_loc"));
        // A record is read at these places.
        assert!(field.offset.checked_add(field.size).is_some(), "{field:?}");
    }
}

pub fn proc_cgroup(bytes: &[u8]) {
    for hierarchy in [Hierarchy::V1, Hierarchy::V2] {
        if let Ok(Some(path)) = parse_proc_cgroup(bytes, hierarchy) {
            // As printed, it cannot break a line, whatever it is.
            assert!(is_printable(&name::path(path.as_os_str())));
        }
    }
    if let Ok(controllers) = parse_cgroups(bytes) {
        assert!(controllers.len() <= lines(bytes));
        assert!(controllers.iter().all(|one| !one.name.is_empty()));
    }
}

pub fn mountinfo(bytes: &[u8]) {
    let Ok(mounts) = mountinfo::parse(bytes) else {
        return;
    };
    assert!(mounts.len() <= lines(bytes));
    for mount in &mounts {
        assert!(mount.mount_point.is_absolute() && !mount.root.as_os_str().is_empty());
    }
    if let Some(tracefs) = Tracefs::among(&mounts) {
        assert!(
            mounts
                .iter()
                .any(|mount| tracefs.root.starts_with(&mount.mount_point))
        );
    }
    if let Some(memory) = MemoryMount::among(&mounts, |_| b"memory".to_vec()) {
        assert!(
            mounts
                .iter()
                .any(|mount| mount.mount_point == memory.mount_point)
        );
        if let Some(dir) = memory.dir_of(&memory.root) {
            assert!(dir.starts_with(&memory.mount_point));
        }
    }
}

/// What a core file's headers place, lies within what they show.
pub fn kcore(bytes: &[u8]) {
    let Ok(segments) = text::segments(bytes) else {
        return;
    };
    for segment in &segments {
        for (within, wanted) in [
            (0, 1),
            (segment.bytes, 1),
            (0, u64::MAX),
            (segment.bytes / 2, 16),
        ] {
            let Some(address) = segment.address.checked_add(within) else {
                continue;
            };
            if let Some(offset) = text::place(&segments, address, wanted) {
                assert!(segments.iter().any(|one| {
                    offset.checked_sub(one.offset).is_some_and(|at| {
                        address.checked_sub(one.address) == Some(at)
                            && at.checked_add(wanted).is_some_and(|end| end <= one.bytes)
                    })
                }));
            }
        }
    }
}

/// Probes are placed on instructions of the function, never beyond it. The first byte says how many
/// arguments it has.
pub fn site(bytes: &[u8]) {
    let (arguments, code) = match bytes.split_first() {
        Some((first, rest)) => (u32::from(first % 8), rest),
        None => (2, bytes),
    };
    for address in [0, 0xffff_ffff_8100_0000, u64::MAX - 8] {
        let thunks = BTreeSet::from([0xffff_ffff_8200_0000]);
        let Ok(sites) = site::find(code, address, arguments, &thunks) else {
            continue;
        };
        let end = code.len() as u64;
        assert!(sites.entry < end, "{sites:?}");
        if let Ok(returns) = sites.returns {
            assert!(!returns.is_empty());
            assert!(returns.iter().all(|at| *at < end), "{returns:?}");
            assert!(returns.is_sorted_by(|one, next| one < next), "{returns:?}");
        }
    }
}

/// The records of a batch lie one behind the other and fill it, or the last thing is an error; each
/// of them can be shown in one line.
pub fn wire(bytes: &[u8]) {
    let batch = Batch::new(Bytes::copy_from_slice(bytes));
    records(&batch);
    if let Ok(recorded) = recording::read(Bytes::copy_from_slice(bytes)) {
        records(&recorded);
    }
}

fn records(batch: &Batch) {
    let (mut taken, mut failed) = (0, false);
    for record in batch.records() {
        assert!(!failed, "something came after an error");
        match record {
            Ok(record) => {
                taken += usize::from(record.header().len);
                assert!(taken <= batch.as_bytes().len());
                shown(&record);
            }
            Err(_) => failed = true,
        }
    }
    assert!(failed || taken == batch.as_bytes().len());
}

fn shown(record: &Record<'_>) {
    assert!(!event::role(record).is_empty());
    assert!(!field_text(&record.header().comm).contains(&0));
    let event = Event::of(record, &Nameless);
    assert!(is_printable(&event.line(0)), "{:?}", event.line(0));
    let json = serde_json::to_string(&event).expect("an event is JSON");
    assert!(!json.contains('\n'), "{json}");
    let back: serde_json::Value = serde_json::from_str(&json).expect("and can be read again");
    assert_eq!(back["comm"], event.comm.as_str());
}

/// Names for events without a session.
struct Nameless;

impl Names for Nameless {
    fn cgroup(&self, id: u64) -> String {
        format!("cgroup {id}")
    }

    fn counter(&self, _: u8) -> &'static str {
        "memory"
    }

    fn item(&self, item: i32) -> String {
        format!("item {item}")
    }

    fn limits(&self, cgroup_id: u64) -> kmem_trace::reconcile::limit::Kernel {
        use kmem_trace::{hooks::limits, reconcile::limit};
        limit::Kernel {
            is_v1: cgroup_id.is_multiple_of(2),
            unit: limits::Unit::Pages,
            page_bytes: 4096,
            accounting: limits::Accounting::Unknown,
            is_root: cgroup_id.is_multiple_of(3),
        }
    }

    fn call_site(&self, address: u64) -> String {
        format!("{address:#x}")
    }
}

/// Files of a line or a few.
pub fn small_files(bytes: &[u8]) {
    if let Ok(list) = cpus::parse_list(bytes) {
        assert!(list.is_sorted_by(|one, next| one < next), "{list:?}");
    }
    let _ = own::parse_resident_pages(bytes);
    let _ = own::parse_bpf_map(bytes);
    let _ = slab_lists::parse(bytes);
    let _ = parse_pretty_name(bytes);
    let _ = zoneinfo::parse(bytes);
    let _ = softirqs::parse(bytes);
    let _ = Cmdline::parse(bytes);
    let _ = Lockdown::parse(bytes);
    let _ = config_has(bytes, "CONFIG_KPROBES");
    let printable = name::printable(bytes);
    assert!(is_printable(&printable), "{printable:?}");
}

fn lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count() + 1
}

/// Nothing in it moves a terminal's cursor or ends a line.
fn is_printable(text: &str) -> bool {
    text.chars().all(|character| !character.is_control())
}
