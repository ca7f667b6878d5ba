//! What a write to a limit file did: the value it meant, the limit before and after, and one
//! sentence of what followed. Judged by what the kernel's own figures did, with the few facts of
//! [`Kernel`] for what they cannot tell.

pub mod value;

#[cfg(test)]
mod tests;

use kmem_trace_ebpf::{
    record::{
        LIMIT_HIGH, LIMIT_LOW, LIMIT_MIN, LIMIT_SOFT, LimitRecord, SOURCE_KMEM, TEXT_LEN, UNREAD,
        UNREAD_WORD,
    },
    totals::{SLOT_KMEM, SLOT_MEMORY, SLOT_SWAP, SLOT_TCPMEM},
};
use nix::errno::Errno;

use self::value::{Notation, Value, parse, unlimited};
use crate::{
    hooks::limits::{Accounting, Unit},
    stream::decode::text,
    view::size,
};

/// What is known beside the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub is_v1: bool,
    pub unit: Unit,
    pub page_bytes: u64,
    pub accounting: Accounting,
    /// The write was to the hierarchy's root.
    pub is_root: bool,
}

/// A limit write in bytes and words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explained {
    /// What the text means; `None` where the kernel takes it for nonsense.
    pub value_bytes: Option<u64>,
    /// The limit before; `None` where this kernel's counters do not say.
    pub old_bytes: Option<u64>,
    /// The limit after.
    pub new_bytes: Option<u64>,
    /// What followed; empty where the figures say it all.
    pub why: String,
}

/// A limit file: what it is called less `memory.`, and where its figures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LimitFile {
    name: &'static str,
    /// Place in the record's limits.
    limit: usize,
    /// Slot of the counter that it limits.
    slot: usize,
    /// The kernel refuses it for the root cgroup, rather than having no such file there.
    not_for_root: bool,
}

const fn file(name: &'static str, limit: usize, slot: usize, not_for_root: bool) -> LimitFile {
    LimitFile {
        name,
        limit,
        slot,
        not_for_root,
    }
}

const KMEM: LimitFile = file("kmem.limit_in_bytes", SLOT_KMEM, SLOT_KMEM, true);

const FILES: [LimitFile; 10] = [
    file("limit_in_bytes", SLOT_MEMORY, SLOT_MEMORY, true),
    file("memsw.limit_in_bytes", SLOT_SWAP, SLOT_SWAP, true),
    KMEM,
    file("kmem.tcp.limit_in_bytes", SLOT_TCPMEM, SLOT_TCPMEM, true),
    file("soft_limit_in_bytes", LIMIT_SOFT, SLOT_MEMORY, false),
    file("max", SLOT_MEMORY, SLOT_MEMORY, false),
    file("high", LIMIT_HIGH, SLOT_MEMORY, false),
    file("min", LIMIT_MIN, SLOT_MEMORY, false),
    file("low", LIMIT_LOW, SLOT_MEMORY, false),
    file("swap.max", SLOT_SWAP, SLOT_SWAP, false),
];

/// The file of a record; kernels before cgroup's rewrite name it without the controller.
fn file_of(record: &LimitRecord) -> Option<LimitFile> {
    if record.source == SOURCE_KMEM {
        return Some(KMEM);
    }
    let name = text(&record.file);
    let name = name.strip_prefix(b"memory.").unwrap_or(name);
    FILES.into_iter().find(|file| file.name.as_bytes() == name)
}

/// Whether a record is about the kernel memory limit of v1.
pub fn is_kmem(record: &LimitRecord) -> bool {
    file_of(record) == Some(KMEM)
}

/// Explains a record.
pub fn explain(record: &LimitRecord, kernel: &Kernel) -> Explained {
    let notation = Notation {
        no_limit: if kernel.is_v1 { "-1" } else { "max" },
        unit: kernel.unit,
        page_bytes: kernel.page_bytes,
    };
    let value = if record.source == SOURCE_KMEM {
        kernel.bytes(record.value).map(|bytes| Value {
            bytes,
            asked_bytes: None,
            wrapped: false,
        })
    } else if is_cut(record) {
        None
    } else {
        parse(text(&record.text), &notation)
    };
    let file = file_of(record);
    let find = |limits: &[u64]| file.and_then(|file| kernel.bytes(limits[file.limit]));
    let new_bytes = find(&record.after);
    let none = unlimited(kernel.unit, kernel.page_bytes);
    let value = value.map(|value| match new_bytes {
        // Of digits too large for 64 bits older kernels keep what is left; 7.3.4 takes the most there is.
        Some(new) if value.wrapped && new == none => Value {
            bytes: none,
            ..value
        },
        _ => value,
    });
    let write = Write {
        record,
        kernel,
        file,
        value,
        old_bytes: find(&record.before),
        new_bytes,
        usage_bytes: file.and_then(|file| kernel.bytes(record.usage[file.slot])),
    };
    let sentences = if record.result < 0 {
        vec![write.refused()]
    } else {
        write.accepted()
    };
    Explained {
        value_bytes: value.map(|value| value.bytes),
        old_bytes: write.old_bytes,
        new_bytes: write.new_bytes,
        why: sentences.join("; "),
    }
}

/// Whether more was written than the record holds: its end, and so its value, are not known.
fn is_cut(record: &LimitRecord) -> bool {
    record.text_len as usize >= TEXT_LEN && text(&record.text).len() == TEXT_LEN - 1
}

/// A limit for people.
pub fn limit_text(bytes: u64) -> String {
    // Both ways of writing none (`unlimited`), whatever the size of a page.
    if bytes >= i64::MAX as u64 - (1 << 20) {
        "no limit".to_owned()
    } else {
        size::human(bytes)
    }
}

impl Kernel {
    /// A counter's figure in bytes.
    fn bytes(&self, figure: u64) -> Option<u64> {
        (figure != UNREAD).then(|| match self.unit {
            Unit::Bytes => figure,
            Unit::Pages => figure
                .saturating_mul(self.page_bytes)
                .min(unlimited(self.unit, self.page_bytes)),
        })
    }

    /// Whether the raw figure says that kernel memory is accounted; `None` where nothing says so.
    fn is_accounted(&self, raw: u32) -> Option<bool> {
        if raw == UNREAD_WORD {
            return None;
        }
        match self.accounting {
            Accounting::Equals(value) => Some(raw == value),
            Accounting::NotZero(bits) => Some(raw & bits != 0),
            Accounting::Always | Accounting::Unknown => None,
        }
    }
}

struct Write<'a> {
    record: &'a LimitRecord,
    kernel: &'a Kernel,
    file: Option<LimitFile>,
    value: Option<Value>,
    old_bytes: Option<u64>,
    new_bytes: Option<u64>,
    usage_bytes: Option<u64>,
}

impl Write<'_> {
    fn is(&self, name: &str) -> bool {
        self.file.is_some_and(|file| file.name == name)
    }

    fn is_kmem(&self) -> bool {
        self.file == Some(KMEM)
    }

    fn accounted(&self) -> (Option<bool>, Option<bool>) {
        let read = |raw| self.kernel.is_accounted(raw);
        (read(self.record.kmem_before), read(self.record.kmem_after))
    }

    // --- refusals ---

    fn refused(&self) -> String {
        let errno = i32::try_from(-self.record.result).map_or(Errno::UnknownErrno, Errno::from_raw);
        match errno {
            Errno::EINVAL => format!("EINVAL: {}", self.invalid()),
            Errno::EBUSY => format!("EBUSY: {}", self.busy()),
            Errno::EOPNOTSUPP if self.is_kmem() => {
                "EOPNOTSUPP: this kernel dropped kmem limits".to_owned()
            }
            Errno::EINTR => {
                "EINTR: a signal ended it before usage was down to the new limit".to_owned()
            }
            Errno::UnknownErrno => format!("error {}", self.record.result),
            other => format!("{other:?}: {}", other.desc()),
        }
    }

    fn invalid(&self) -> String {
        let Some(value) = self.value else {
            if is_cut(self.record) {
                return "the kernel refuses this value here".to_owned();
            }
            let word = if self.kernel.is_v1 { "-1" } else { "max" };
            return format!(
                "that is no size; write bytes, or a number with K, M, G, T, P or E, or {word} for no limit"
            );
        };
        if self.kernel.is_root && self.file.is_some_and(|file| file.not_for_root) {
            return "the root cgroup has no limit".to_owned();
        }
        let limit = |slot: usize| self.kernel.bytes(self.record.after[slot]);
        if self.is("limit_in_bytes")
            && let Some(both) = limit(SLOT_SWAP).filter(|both| *both < value.bytes)
        {
            return format!(
                "above memory.memsw.limit_in_bytes ({}): raise that first",
                limit_text(both)
            );
        }
        if self.is("memsw.limit_in_bytes")
            && let Some(memory) = limit(SLOT_MEMORY).filter(|memory| *memory > value.bytes)
        {
            return format!(
                "below memory.limit_in_bytes ({}): lower that first",
                limit_text(memory)
            );
        }
        "the kernel refuses this value here".to_owned()
    }

    fn busy(&self) -> String {
        // Before 4.5 the first limit switches accounting on, which needs an empty cgroup.
        if self.is_kmem() && self.accounted().0 == Some(false) {
            if self.record.populated != UNREAD_WORD && self.record.populated > 0 {
                return "tasks are already in it; switch kmem accounting on before the first one comes".to_owned();
            }
            if self.record.descendants != UNREAD_WORD && self.record.descendants > 0 {
                return "it has children; switch kmem accounting on before they are made"
                    .to_owned();
            }
        }
        let reclaim = if self.is_kmem() || self.is("kmem.tcp.limit_in_bytes") {
            ""
        } else {
            " and reclaim did not bring it down"
        };
        match (self.usage_bytes, self.value) {
            (Some(usage), Some(value)) if usage > value.bytes => {
                format!(
                    "usage {} is above the new limit{reclaim}",
                    size::human(usage)
                )
            }
            (Some(usage), Some(_)) => format!(
                "the kernel found usage above the new limit; a moment later it is {}",
                size::human(usage)
            ),
            _ => "usage is above the new limit".to_owned(),
        }
    }

    // --- successes ---

    fn accepted(&self) -> Vec<String> {
        let mut said = Vec::new();
        let Some(value) = self.value else {
            said.push(if is_cut(self.record) {
                "the text is longer than what is kept of it".to_owned()
            } else {
                "the kernel took it though it is no size".to_owned()
            });
            return said;
        };
        said.extend(self.rounding(value));
        if self.is_kmem() {
            said.extend(self.kmem(value));
        } else {
            said.extend(self.effect(value));
        }
        said
    }

    fn rounding(&self, value: Value) -> Option<String> {
        let asked = value.asked_bytes?;
        if value.wrapped {
            return Some(format!(
                "too large for 64 bits: the kernel was left with {}",
                limit_text(value.bytes)
            ));
        }
        let written = text(&self.record.text);
        if !written.iter().any(u8::is_ascii_digit) {
            return Some("a text without digits is 0".to_owned());
        }
        if value.bytes == asked {
            None
        } else if value.bytes == unlimited(self.kernel.unit, self.kernel.page_bytes) {
            Some(format!("{asked} B is more than any limit: no limit"))
        } else {
            Some(format!("{asked} B → {} B: whole pages", value.bytes))
        }
    }

    fn kmem(&self, value: Value) -> Vec<String> {
        let mut said = Vec::new();
        let (before, after) = self.accounted();
        match (before, after) {
            (Some(false), Some(true)) => said.push("kmem accounting became active".to_owned()),
            (Some(true), Some(true)) if self.changed() => {
                said.push("only the limit changed: kmem accounting was active already".to_owned());
            }
            (_, Some(false)) => {
                said.push("kmem accounting is not active in this cgroup".to_owned())
            }
            _ => {}
        }
        if let (Some(old), Some(new)) = (self.old_bytes, self.new_bytes)
            && old == new
        {
            said.push(
                if old != value.bytes || self.kernel.accounting == Accounting::Always {
                    "this kernel ignores it: kmem accounting is always on and has no limit of its own"
                } else {
                    "no change: that was the limit already"
                }
                .to_owned(),
            );
        }
        said
    }

    fn changed(&self) -> bool {
        self.old_bytes != self.new_bytes
    }

    /// Any limit but the kernel memory limit.
    fn effect(&self, value: Value) -> Option<String> {
        let new = self.new_bytes?;
        if new != value.bytes {
            return Some(if self.changed() {
                format!(
                    "the limit is {} now: another write came between",
                    limit_text(new)
                )
            } else {
                "the limit stayed as it was: this kernel ignores the write".to_owned()
            });
        }
        if !self.changed() {
            return Some("no change: that was the limit already".to_owned());
        }
        let usage = self.usage_bytes.filter(|usage| *usage > new)?;
        let then = if self.is("max") {
            "the kernel reclaims and, where that is not enough, kills"
        } else if self.is("high") {
            "its tasks are slowed down and reclaimed from"
        } else if self.is("swap.max") {
            "what is swapped out stays there"
        } else {
            return None;
        };
        Some(format!("usage {} is above it: {then}", size::human(usage)))
    }
}
