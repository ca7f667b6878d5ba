//! Arbitrary bytes, and samples of real files with damage done to them, through every parser of
//! what a kernel says and of what the programs send. What must hold is in `checks`.

mod checks;

use std::fs;

use kmem_trace_ebpf::record::{
    CgroupRecord, CounterRecord, Header, KIND_CGROUP, KIND_COUNTER, KIND_LIMIT, KIND_SLAB,
    KIND_STATE, KIND_USER_CHARGE, LimitRecord, SlabRecord, StateRecord, UserChargeRecord,
};
use proptest::{collection::vec, prelude::*, sample::Index};

/// What happens to a file between the kernel and us: never, but the fuzzer found it.
#[derive(Clone, Debug)]
enum Damage {
    /// Another byte in its place.
    Set(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    Cut(Index),
    /// The part between two places once more, at the end.
    Repeat(Index, Index),
    /// A number as large as they come.
    Huge(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let byte = || {
        prop_oneof![
            any::<u8>(),
            prop::sample::select(b" \t\n:,-*[];0\\\xff".to_vec())
        ]
    };
    prop_oneof![
        (any::<Index>(), byte()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (any::<Index>(), byte()).prop_map(|(at, byte)| Damage::Insert(at, byte)),
        any::<Index>().prop_map(Damage::Remove),
        any::<Index>().prop_map(Damage::Cut),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Repeat(from, to)),
        any::<Index>().prop_map(Damage::Huge),
    ]
}

fn damaged(mut bytes: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        match damage {
            Damage::Set(at, byte) => bytes[at.index(len)] = *byte,
            Damage::Insert(at, byte) => bytes.insert(at.index(len), *byte),
            Damage::Remove(at) => {
                bytes.remove(at.index(len));
            }
            Damage::Cut(at) => bytes.truncate(at.index(len)),
            Damage::Repeat(from, to) => {
                let (from, to) = (from.index(len), to.index(len));
                bytes.extend_from_within(from.min(to)..from.max(to));
            }
            Damage::Huge(at) => {
                let at = at.index(len);
                bytes.splice(at..at, *b"18446744073709551615");
            }
        }
    }
    bytes
}

/// Samples of text files, beside this file.
fn samples() -> Vec<Vec<u8>> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bad_input/samples");
    let mut files: Vec<_> = fs::read_dir(dir)
        .expect("the samples are there")
        .map(|entry| entry.expect("they can be listed").path())
        .collect();
    files.sort();
    files
        .iter()
        .map(|file| fs::read(file).expect("they can be read"))
        .chain([core_file(), function()])
        .collect()
}

/// Headers of a core file with two segments.
fn core_file() -> Vec<u8> {
    let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    bytes.resize(16, 0);
    bytes.extend(4u16.to_le_bytes());
    bytes.extend(62u16.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    for word in [0u64, 64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    for (offset, address) in [
        (0x1000u64, 0xffff_ffff_8100_0000u64),
        (0x9000, 0xffff_8880_0000_0000),
    ] {
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(7u32.to_le_bytes());
        for word in [offset, address, 0, 0x4000, 0x4000, 0] {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes
}

/// The number of arguments, and page_counter_charge of Linux 6.1.
fn function() -> Vec<u8> {
    const CODE: &str = "020f1f4400004885ff744341544989f455534889fb4c89e0f0480fc103498d2c044889df4889eee8f5feff\
        ff488b43704839e8730448896b70488b9ba00000004885db75d05b5d415cc3ccccccccc3cccccccc";
    (0..CODE.len() / 2)
        .map(|at| u8::from_str_radix(&CODE[2 * at..2 * at + 2], 16).expect("hexadecimal"))
        .collect()
}

/// One record of each kind, with bytes of no meaning in it.
fn records(filling: &[u8]) -> Vec<u8> {
    let sizes = [
        (KIND_COUNTER, size_of::<CounterRecord>()),
        (KIND_USER_CHARGE, size_of::<UserChargeRecord>()),
        (KIND_STATE, size_of::<StateRecord>()),
        (KIND_SLAB, size_of::<SlabRecord>()),
        (KIND_LIMIT, size_of::<LimitRecord>()),
        (KIND_CGROUP, size_of::<CgroupRecord>()),
    ];
    let mut fill = filling.iter().copied().cycle();
    let mut bytes = Vec::new();
    for (kind, size) in sizes {
        let start = bytes.len();
        bytes.extend((0..size).map(|_| fill.next().unwrap_or(0)));
        let header = Header {
            kind,
            len: u16::try_from(size).expect("records are small"),
            ..Header::default()
        };
        bytes[start..start + 2].copy_from_slice(&header.kind.to_ne_bytes());
        bytes[start + 2..start + 4].copy_from_slice(&header.len.to_ne_bytes());
    }
    bytes
}

#[test]
fn every_check_is_a_fuzz_target() {
    let fuzz = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz");
    let manifest = fs::read_to_string(format!("{fuzz}/Cargo.toml")).expect("fuzz/ is there");
    for (name, _) in checks::ALL {
        let target = fs::read_to_string(format!("{fuzz}/fuzz_targets/{name}.rs"))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(
            target.contains(&format!("checks::{name}(bytes)")),
            "{target}"
        );
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}

#[test]
fn undamaged_samples_are_accepted_by_their_parsers() {
    use kmem_trace::kernel::{cgroupfs, proc, symbols, text, tracefs};
    let sample = |name: &str| {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bad_input/samples");
        fs::read(format!("{dir}/{name}")).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    assert!(cgroupfs::MemoryStat::parse(&sample("memory.stat")).is_ok());
    assert_eq!(
        proc::slabinfo::parse(&sample("slabinfo"))
            .expect("valid")
            .len(),
        4
    );
    assert!(proc::meminfo::Meminfo::parse(&sample("meminfo")).is_ok());
    let kallsyms = symbols::parse_kallsyms(&sample("kallsyms"), &["page_counter_charge"]);
    assert!(
        kallsyms
            .expect("valid")
            .function("page_counter_charge")
            .is_some()
    );
    assert_eq!(
        tracefs::parse_format(&sample("format"))
            .expect("valid")
            .fields
            .len(),
        7
    );
    let path = cgroupfs::parse_proc_cgroup(&sample("proc_cgroup"), cgroupfs::Hierarchy::V1);
    assert!(path.expect("valid").is_some());
    assert_eq!(
        cgroupfs::mountinfo::parse(&sample("mountinfo"))
            .expect("valid")
            .len(),
        6
    );
    assert!(cgroupfs::parse_cgroups(&sample("cgroups")).is_ok());
    assert!(proc::cpus::parse_list(&sample("cpus")).is_ok());
    let softirqs = proc::softirqs::parse(&sample("softirqs")).expect("valid");
    assert_eq!(softirqs.len(), 10);
    assert!(proc::zoneinfo::parse(&sample("zoneinfo")).is_ok_and(|pages| pages > 0));
    assert_eq!(text::segments(&core_file()).expect("valid").len(), 2);
    let found = kmem_trace::hooks::site::find(&function()[1..], 0x1000, 2, &Default::default());
    assert!(found.is_ok(), "{found:?}");
    let batch = kmem_trace::stream::decode::Batch::new(records(b"\x1b\n\xff").into());
    assert_eq!(batch.records().filter(Result::is_ok).count(), 6);
}

proptest! {
    #[test]
    fn arbitrary_bytes_break_no_parser(bytes in vec(any::<u8>(), 0..600)) {
        for (_, check) in checks::ALL {
            check(&bytes);
        }
    }

    #[test]
    fn damaged_samples_break_no_parser(which in any::<Index>(), damages in vec(damage(), 0..6)) {
        let samples = samples();
        let bytes = damaged(samples[which.index(samples.len())].clone(), &damages);
        for (_, check) in checks::ALL {
            check(&bytes);
        }
    }

    #[test]
    fn damaged_records_break_neither_decoder_nor_events(
        filling in vec(any::<u8>(), 1..40),
        damages in vec(damage(), 0..4),
    ) {
        checks::wire(&damaged(records(&filling), &damages));
    }
}

proptest! {
    // Most arbitrary bytes are no function: more of them.
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_code_gives_sites_within_it_or_none(code in vec(any::<u8>(), 1..160)) {
        checks::site(&code);
    }

    #[test]
    fn so_does_a_damaged_function(damages in vec(damage(), 1..8)) {
        checks::site(&damaged(function(), &damages));
    }
}
