use kmem_trace_ebpf::record::{
    FILE_LEN, Header, KIND_LIMIT, LIMITS, LimitRecord, SOURCE_FILE, TEXT_LEN, UNREAD, UNREAD_WORD,
};

use super::*;

const MAX_PAGES: u64 = i64::MAX as u64 / 4096;
const NO_LIMIT: u64 = MAX_PAGES * 4096;

/// 6.1: no cgroup without kmem accounting.
const V1: Kernel = Kernel {
    is_v1: true,
    unit: Unit::Pages,
    page_bytes: 4096,
    accounting: Accounting::Always,
    is_root: false,
};
const V2: Kernel = Kernel { is_v1: false, ..V1 };
/// 4.5 to 5.15: `kmem_state`, where 2 is online.
const STATE: Kernel = Kernel {
    accounting: Accounting::Equals(2),
    ..V1
};
/// Before 4.5.
const FLAG: Kernel = Kernel {
    accounting: Accounting::NotZero(1),
    ..V1
};

fn field<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    field[..text.len()].copy_from_slice(text.as_bytes());
    field
}

/// A write to a cgroup without limits that uses nothing.
fn write(file: &str, text: &str, result: i64) -> LimitRecord {
    LimitRecord {
        header: Header {
            kind: KIND_LIMIT,
            len: size_of::<LimitRecord>() as u16,
            ..Header::default()
        },
        cgroup_id: 7,
        result,
        before: [MAX_PAGES; LIMITS],
        after: [MAX_PAGES; LIMITS],
        usage: [0; 4],
        value: UNREAD,
        file: field::<FILE_LEN>(file),
        text: field::<TEXT_LEN>(text),
        text_len: text.len() as u32 + 1,
        source: SOURCE_FILE,
        kmem_before: UNREAD_WORD,
        kmem_after: UNREAD_WORD,
        populated: 0,
        descendants: 0,
    }
}

/// The same that moved the limit at `place` to `pages`.
fn moved(file: &str, text: &str, place: usize, pages: u64) -> LimitRecord {
    let mut record = write(file, text, text.len() as i64 + 1);
    record.after[place] = pages;
    record
}

const KMEM_FILE: &str = "memory.kmem.limit_in_bytes";

#[test]
fn a_plain_change_needs_no_words() {
    let record = moved("memory.limit_in_bytes", "5G", SLOT_MEMORY, 1_310_720);
    assert_eq!(
        explain(&record, &V1),
        Explained {
            value_bytes: Some(5_368_709_120),
            old_bytes: Some(NO_LIMIT),
            new_bytes: Some(5_368_709_120),
            why: String::new(),
        }
    );
}

#[test]
fn each_file_is_told_from_its_own_limit() {
    for (file, place, kernel) in [
        ("memory.limit_in_bytes", SLOT_MEMORY, V1),
        ("memory.memsw.limit_in_bytes", SLOT_SWAP, V1),
        (KMEM_FILE, SLOT_KMEM, STATE),
        ("memory.kmem.tcp.limit_in_bytes", SLOT_TCPMEM, V1),
        ("memory.soft_limit_in_bytes", LIMIT_SOFT, V1),
        ("limit_in_bytes", SLOT_MEMORY, V1),
        ("memory.max", SLOT_MEMORY, V2),
        ("memory.high", LIMIT_HIGH, V2),
        ("memory.min", LIMIT_MIN, V2),
        ("memory.low", LIMIT_LOW, V2),
        ("memory.swap.max", SLOT_SWAP, V2),
    ] {
        let explained = explain(&moved(file, "8K", place, 2), &kernel);
        assert_eq!(explained.old_bytes, Some(NO_LIMIT), "{file}");
        assert_eq!(explained.new_bytes, Some(8192), "{file}");
    }
}

#[test]
fn a_file_that_is_not_known_has_text_and_result_only() {
    let explained = explain(&write("memory.zswap.max", "8K", 3), &V2);
    assert_eq!(explained.old_bytes, None);
    assert_eq!(explained.value_bytes, Some(8192));
    assert_eq!(explained.why, "");
}

#[test]
fn rounding_is_said_when_it_happened() {
    let explained = explain(&moved("memory.max", "10000", SLOT_MEMORY, 2), &V2);
    assert_eq!(explained.why, "10000 B → 8192 B: whole pages");
    let record = moved(
        "memory.max",
        "99999999999999999999999",
        SLOT_MEMORY,
        48_920_024_541_183,
    );
    assert!(
        explain(&record, &V2)
            .why
            .starts_with("too large for 64 bits"),
        "{:?}",
        explain(&record, &V2)
    );
    let mut saturated = moved("memory.max", "99999999999999999999999", SLOT_MEMORY, 2);
    saturated.before[SLOT_MEMORY] = 1;
    saturated.after[SLOT_MEMORY] = MAX_PAGES;
    let explained = explain(&saturated, &V2);
    assert_eq!(explained.value_bytes, Some(NO_LIMIT));
    assert_eq!(
        explained.why,
        "too large for 64 bits: the kernel was left with no limit"
    );
    let explained = explain(&moved("memory.max", "", SLOT_MEMORY, 0), &V2);
    assert_eq!(explained.why, "a text without digits is 0");
}

#[test]
fn invalid_writes_say_what_is_invalid() {
    let why = |record: &LimitRecord, kernel: &Kernel| explain(record, kernel).why;
    let einval = -i64::from(libc::EINVAL);
    let nonsense = why(&write("memory.limit_in_bytes", "nonsense", einval), &V1);
    assert!(
        nonsense.starts_with("EINVAL: that is no size"),
        "{nonsense}"
    );
    assert!(nonsense.ends_with("or -1 for no limit"), "{nonsense}");
    let root = Kernel {
        is_root: true,
        ..V1
    };
    assert_eq!(
        why(&write("memory.limit_in_bytes", "1G", einval), &root),
        "EINVAL: the root cgroup has no limit"
    );
    let mut above = write("memory.limit_in_bytes", "2G", einval);
    above.after[SLOT_SWAP] = 262_144;
    assert_eq!(
        why(&above, &V1),
        "EINVAL: above memory.memsw.limit_in_bytes (1 024.0 MiB): raise that first"
    );
    assert_eq!(
        why(&write("memory.memsw.limit_in_bytes", "2G", einval), &V1),
        "EINVAL: below memory.limit_in_bytes (no limit): lower that first"
    );
}

#[test]
fn busy_by_usage_says_the_usage() {
    let mut record = write("memory.limit_in_bytes", "1M", -i64::from(libc::EBUSY));
    record.usage[SLOT_MEMORY] = 3072;
    assert_eq!(
        explain(&record, &V1).why,
        "EBUSY: usage 12.0 MiB is above the new limit and reclaim did not bring it down"
    );
    let mut record = write(KMEM_FILE, "0", -i64::from(libc::EBUSY));
    record.kmem_before = 2;
    record.kmem_after = 2;
    record.usage[SLOT_KMEM] = 10;
    record.populated = 1;
    assert_eq!(
        explain(&record, &STATE).why,
        "EBUSY: usage 40.0 KiB is above the new limit"
    );
    record.usage[SLOT_KMEM] = 0;
    assert_eq!(
        explain(&record, &STATE).why,
        "EBUSY: the kernel found usage above the new limit; a moment later it is 0 B"
    );
}

#[test]
fn busy_before_accounting_is_by_tasks_or_children() {
    let mut record = write(KMEM_FILE, "0", -i64::from(libc::EBUSY));
    record.kmem_before = 0;
    record.kmem_after = 0;
    record.populated = 1;
    record.descendants = 1;
    assert!(
        explain(&record, &FLAG)
            .why
            .starts_with("EBUSY: tasks are already in it")
    );
    record.populated = 0;
    assert!(
        explain(&record, &FLAG)
            .why
            .starts_with("EBUSY: it has children")
    );
}

#[test]
fn the_first_kmem_limit_switches_accounting_on() {
    let mut record = moved(KMEM_FILE, "0", SLOT_KMEM, 0);
    (record.kmem_before, record.kmem_after) = (0, 1);
    assert_eq!(explain(&record, &FLAG).why, "kmem accounting became active");
    let mut record = moved(KMEM_FILE, "0", SLOT_KMEM, 0);
    (record.kmem_before, record.kmem_after) = (2, 2);
    assert_eq!(
        explain(&record, &STATE).why,
        "only the limit changed: kmem accounting was active already"
    );
    let mut record = write(KMEM_FILE, "-1", 3);
    (record.kmem_before, record.kmem_after) = (0, 0);
    assert_eq!(
        explain(&record, &FLAG).why,
        "kmem accounting is not active in this cgroup; no change: that was the limit already"
    );
}

#[test]
fn a_kernel_that_ignores_kmem_limits_is_found_out() {
    for text in ["0", "-1"] {
        let explained = explain(&write(KMEM_FILE, text, 2), &V1);
        assert!(
            explained.why.starts_with("this kernel ignores it"),
            "{}",
            explained.why
        );
    }
    // Said to have no limit by its types, yet the limit moved: believe the limit.
    let explained = explain(&moved(KMEM_FILE, "0", SLOT_KMEM, 0), &V1);
    assert_eq!(explained.why, "");
    let refused = explain(&write(KMEM_FILE, "0", -i64::from(libc::EOPNOTSUPP)), &V1);
    assert_eq!(refused.why, "EOPNOTSUPP: this kernel dropped kmem limits");
}

#[test]
fn a_limit_below_usage_says_what_the_kernel_does_about_it() {
    let mut record = moved("memory.high", "1M", LIMIT_HIGH, 256);
    record.usage[SLOT_MEMORY] = 3072;
    assert_eq!(
        explain(&record, &V2).why,
        "usage 12.0 MiB is above it: its tasks are slowed down and reclaimed from"
    );
}

#[test]
fn a_text_that_was_cut_has_no_value() {
    let mut record = write("memory.max", &"0".repeat(TEXT_LEN - 1), 80);
    record.text_len = 80;
    let explained = explain(&record, &V2);
    assert_eq!(explained.value_bytes, None);
    assert_eq!(explained.why, "the text is longer than what is kept of it");
}

#[test]
fn the_kernels_own_function_says_the_value() {
    let mut record = moved("", "", SLOT_KMEM, 2);
    record.source = SOURCE_KMEM;
    record.value = 2;
    record.result = 0;
    let explained = explain(&record, &STATE);
    assert_eq!(explained.value_bytes, Some(8192));
    assert_eq!(explained.new_bytes, Some(8192));
    assert!(is_kmem(&record));
}
