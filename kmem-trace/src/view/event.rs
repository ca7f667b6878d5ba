//! Records → events as printed: one line of text, or one JSON object.

use kmem_trace_ebpf::{
    record::{
        Header, OP_ATTACH, OP_CHARGE, OP_FREE, OP_MKDIR, OP_REFUSED, OP_RELEASE, OP_RENAME,
        OP_RMDIR, OP_TRY_CHARGE, OP_UNCHARGE, SOURCE_KMEM,
    },
    sums::{CAUSE_CHARGED, CAUSE_UNASKED, OTHERS},
};
use serde::Serialize;

use super::{name, size};
use crate::ledger::slab;
use crate::reconcile::limit;
use crate::stream::decode::{Record, text};

/// A cgroup that is not traced.
pub const ANOTHER: &str = "(another cgroup)";

/// An event of a role. Keys that do not apply are absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Event {
    pub role: &'static str,
    pub time_ns: u64,
    pub cpu: u32,
    pub pid: u32,
    pub comm: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counter: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pages: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_site: Option<String>,
    /// Who is charged for a slab object; absent where nobody is, or where it was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payer_id: Option<u64>,
    /// Who asked for it; absent on frees of charged objects, which do not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asker: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asker_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accounted: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What an event needs to know beyond its record.
pub trait Names {
    /// The cgroup of that id, as printed.
    fn cgroup(&self, id: u64) -> String;
    /// The counter of a slot: `memory`, `kmem`, `memsw` or `swap`, `tcpmem`.
    fn counter(&self, slot: u8) -> &'static str;
    /// `memory.stat` item of that number.
    fn item(&self, item: i32) -> String;
    /// What must be known of the kernel to explain a limit write to that cgroup.
    fn limits(&self, cgroup_id: u64) -> limit::Kernel;
    /// The function an address is in.
    fn call_site(&self, address: u64) -> String;
}

impl Event {
    /// The event of a record.
    pub fn of(record: &Record<'_>, names: &dyn Names) -> Self {
        let mut event = Self {
            role: role(record),
            ..Self::from_header(record.header())
        };
        match record {
            Record::Counter(it) => {
                event.names(it.cgroup_id, names);
                event.counter = Some(names.counter(it.slot));
                event.pages = Some(it.pages.cast_signed());
                event.result = match it.op {
                    OP_CHARGE => Some("charged".to_owned()),
                    OP_TRY_CHARGE => Some("charged within the limit".to_owned()),
                    OP_REFUSED => Some("refused: limit reached".to_owned()),
                    _ => Some("uncharged".to_owned()),
                };
            }
            Record::UserCharge(it) => {
                event.names(it.cgroup_id, names);
                event.pages = Some(i64::from(it.pages));
                event.result = Some(outcome(i64::from(it.result)));
            }
            Record::State(it) => {
                event.names(it.cgroup_id, names);
                event.item = Some(names.item(it.item));
                event.pages = Some(i64::from(it.pages));
            }
            Record::Slab(it) => {
                event.bytes = (it.bytes_alloc != 0).then_some(it.bytes_alloc);
                event.call_site = (it.call_site != 0).then(|| names.call_site(it.call_site));
                let cache = text(&it.cache);
                event.cache = (!cache.is_empty()).then(|| name::printable(cache));
                event.accounted = (it.accounted < 2).then_some(it.accounted == 1);
                if it.cause != CAUSE_UNASKED {
                    event.cause = Some(slab::cause_name(it.cause));
                    (event.payer, event.payer_id) = party(it.cgroup_id, names);
                    (event.asker, event.asker_id) = party(it.asker, names);
                }
            }
            Record::Limit(it) => {
                event.names(it.cgroup_id, names);
                if it.source != SOURCE_KMEM {
                    event.file = Some(name::printable(text(&it.file)));
                    event.text = Some(name::printable(text(&it.text).trim_ascii()));
                }
                let explained = limit::explain(it, &names.limits(it.cgroup_id));
                event.value_bytes = explained.value_bytes;
                event.old_bytes = explained.old_bytes;
                event.new_bytes = explained.new_bytes;
                event.result = Some(outcome_name(it.result));
                event.why = (!explained.why.is_empty()).then_some(explained.why);
            }
            Record::Cgroup(it) => {
                event.names(it.cgroup_id, names);
                event.task = (it.op == OP_ATTACH).then_some(it.task);
                event.result = Some(
                    match it.op {
                        OP_MKDIR => "made",
                        OP_RMDIR => "removed",
                        OP_RELEASE => "released",
                        OP_RENAME => "renamed",
                        OP_ATTACH => "task moved in",
                        _ => "changed",
                    }
                    .to_owned(),
                );
            }
        }
        event
    }

    fn from_header(header: &Header) -> Self {
        Self {
            time_ns: header.time_ns,
            cpu: header.cpu,
            pid: header.pid,
            comm: name::printable(text(&header.comm)),
            ..Self::default()
        }
    }

    fn names(&mut self, cgroup_id: u64, names: &dyn Names) {
        self.cgroup_id = Some(cgroup_id);
        self.cgroup = Some(names.cgroup(cgroup_id));
    }

    /// One line of text; `since_ns` is the time of the first event.
    pub fn line(&self, since_ns: u64) -> String {
        let seconds = self.time_ns.saturating_sub(since_ns) as f64 / 1e9;
        let mut line = format!(
            "{seconds:>11.6}  cpu {:<3} {:>7} {:<16} {:<17}",
            self.cpu, self.pid, self.comm, self.role
        );
        let mut add = |part: String| {
            line.push(' ');
            line.push_str(&part);
        };
        if let Some(cgroup) = &self.cgroup {
            add(cgroup.clone());
        }
        if let Some(counter) = self.counter {
            add(counter.to_owned());
        }
        if let Some(item) = &self.item {
            add(item.clone());
        }
        if let Some(pages) = self.pages {
            add(format!("{pages} pages"));
        }
        if let Some(cache) = &self.cache {
            add(cache.clone());
        }
        if let Some(bytes) = self.bytes {
            add(size::human(bytes));
        }
        if let Some(call_site) = &self.call_site {
            add(format!("at {call_site}"));
        }
        // A payer who asked is named once.
        if let Some(payer) = self.payer.as_ref().filter(|_| self.asker != self.payer) {
            add(format!("charged to {payer}"));
        }
        if let Some(asker) = &self.asker {
            add(format!("for {asker}"));
        }
        // Who pays is said: then that it is charged, as well.
        let is_said = self.payer.is_some() && self.payer != self.asker;
        let charged = slab::cause_name(CAUSE_CHARGED);
        if let Some(cause) = self.cause.filter(|cause| !(is_said && *cause == charged)) {
            add(cause.to_owned());
        }
        if let Some(accounted) = self.accounted {
            add(if accounted {
                "accounted"
            } else {
                "not accounted"
            }
            .to_owned());
        }
        if let Some(file) = &self.file {
            add(file.clone());
        }
        if let Some(text) = &self.text {
            add(format!("\"{text}\""));
        }
        if let (Some(old), Some(new)) = (self.old_bytes, self.new_bytes) {
            add(if old == new {
                format!("stays {}", limit::limit_text(new))
            } else {
                format!("{} → {}", limit::limit_text(old), limit::limit_text(new))
            });
        }
        if let Some(task) = self.task {
            add(format!("task {task} moved in"));
            return line;
        }
        match (&self.result, &self.why) {
            // The explanation of a refusal begins with the refusal's name.
            (Some(result), Some(why)) if why.starts_with(result.as_str()) => add(why.clone()),
            (Some(result), Some(why)) => add(format!("{result} ({why})")),
            (Some(result), None) => add(result.clone()),
            (None, _) => {}
        }
        line
    }
}

/// A cgroup as a slab record names it.
fn party(id: u64, names: &dyn Names) -> (Option<String>, Option<u64>) {
    match id {
        0 => (None, None),
        OTHERS => (Some(ANOTHER.to_owned()), None),
        id => (Some(names.cgroup(id)), Some(id)),
    }
}

/// The role whose event a record is.
pub fn role(record: &Record<'_>) -> &'static str {
    match record {
        Record::Counter(it) if it.op == OP_UNCHARGE => "counter.uncharge",
        Record::Counter(_) => "counter.charge",
        Record::UserCharge(_) => "charge.user",
        Record::State(_) => "memcg.state",
        Record::Slab(it) if it.op == OP_FREE => "slab.free",
        Record::Slab(_) => "slab.alloc",
        Record::Limit(it) if it.source == SOURCE_KMEM => "limit.kmem",
        Record::Limit(_) => "limit.write",
        Record::Cgroup(_) => "cgroup.lifecycle",
    }
}

/// Roles of the table that records are of, as [`role`] has them.
const WITH_EVENTS: [&str; 9] = [
    "counter.charge",
    "counter.uncharge",
    "memcg.state",
    "charge.user",
    "limit.write",
    "limit.kmem",
    "cgroup.lifecycle",
    "slab.alloc",
    "slab.free",
];

/// Whether a role has events of its own: the others serve the figures, or add to the events of these.
pub fn has_own(role: &str) -> bool {
    WITH_EVENTS.contains(&role)
}

/// A result by its name alone: `ok`, `EBUSY`.
fn outcome_name(result: i64) -> String {
    match outcome(result).split_once(':') {
        Some((name, _)) => name.to_owned(),
        None => outcome(result),
    }
}

/// A kernel function's return value in words.
fn outcome(result: i64) -> String {
    if result >= 0 {
        return "ok".to_owned();
    }
    match i32::try_from(-result) {
        Ok(number) => {
            let errno = nix::errno::Errno::from_raw(number);
            format!("{errno:?}: {}", errno.desc())
        }
        Err(_) => format!("error {result}"),
    }
}

#[cfg(test)]
mod tests {
    use kmem_trace_ebpf::{
        record::{CACHE_LEN, CgroupRecord, KIND_CGROUP, KIND_SLAB, OP_ALLOC, PATH_LEN, SlabRecord},
        sums::CAUSE_SOFTIRQ,
    };

    use super::*;

    struct Numbered;

    impl Names for Numbered {
        fn cgroup(&self, id: u64) -> String {
            format!("/{id}")
        }
        fn counter(&self, _: u8) -> &'static str {
            "memory"
        }
        fn item(&self, item: i32) -> String {
            item.to_string()
        }
        fn limits(&self, _: u64) -> limit::Kernel {
            unreachable!("no limit is written here")
        }
        fn call_site(&self, address: u64) -> String {
            format!("{address:#x}")
        }
    }

    fn object(payer: u64, asker: u64, cause: u8) -> SlabRecord {
        let mut cache = [0; CACHE_LEN];
        cache[..3].copy_from_slice(b"TCP");
        SlabRecord {
            header: Header {
                kind: KIND_SLAB,
                len: size_of::<SlabRecord>() as u16,
                ..Header::default()
            },
            cgroup_id: payer,
            asker,
            object: 0x1000,
            call_site: 0x77,
            bytes_req: 2048,
            bytes_alloc: 2048,
            gfp: 0,
            op: OP_ALLOC,
            accounted: 2,
            cause,
            reserved: 0,
            cache,
        }
    }

    fn shown(record: &SlabRecord) -> (Event, String) {
        let event = Event::of(&Record::Slab(record), &Numbered);
        let line = event.line(0);
        let from = line.find("TCP").unwrap_or_default();
        let text = line[from..].to_owned();
        (event, text)
    }

    #[test]
    fn an_object_is_told_with_who_pays_who_asked_and_why_nobody_does() {
        let (event, text) = shown(&object(7, 7, CAUSE_CHARGED));
        assert_eq!((event.payer_id, event.asker_id), (Some(7), Some(7)));
        assert_eq!(text, "TCP 2.0 KiB at 0x77 for /7 charged");
        let (event, text) = shown(&object(7, OTHERS, CAUSE_CHARGED));
        assert_eq!(event.asker_id, None);
        assert_eq!(
            text,
            "TCP 2.0 KiB at 0x77 charged to /7 for (another cgroup)"
        );
        // A free says who paid, and not who asked.
        let (event, text) = shown(&object(7, 0, CAUSE_CHARGED));
        assert_eq!((event.cause, event.asker), (Some("charged"), None));
        assert_eq!(text, "TCP 2.0 KiB at 0x77 charged to /7");
        let (event, text) = shown(&object(0, 8, CAUSE_SOFTIRQ));
        assert_eq!((event.payer, event.cause), (None, Some("softirq")));
        assert_eq!(text, "TCP 2.0 KiB at 0x77 for /8 softirq");
    }

    #[test]
    fn each_role_with_events_is_in_the_table() {
        for name in WITH_EVENTS {
            assert!(crate::hooks::table::role(name).is_some(), "{name}");
        }
        assert!(has_own(role(&Record::Slab(&object(7, 7, CAUSE_CHARGED)))));
    }

    #[test]
    fn a_task_that_moves_is_told_in_few_words() {
        let record = CgroupRecord {
            header: Header {
                kind: KIND_CGROUP,
                len: size_of::<CgroupRecord>() as u16,
                ..Header::default()
            },
            cgroup_id: 7,
            hierarchy: 1,
            task: 27_670,
            level: 1,
            op: OP_ATTACH,
            reserved: [0; 3],
            path: [0; PATH_LEN],
        };
        let event = Event::of(&Record::Cgroup(&record), &Numbered);
        assert_eq!(event.result.as_deref(), Some("task moved in"));
        let line = event.line(0);
        assert!(
            line.ends_with("cgroup.lifecycle  /7 task 27670 moved in"),
            "{line}"
        );
    }

    #[test]
    fn an_object_that_was_not_asked_says_nothing_of_anybody() {
        let (event, text) = shown(&object(0, 0, CAUSE_UNASKED));
        assert_eq!((event.payer, event.asker, event.cause), (None, None, None));
        assert_eq!(text, "TCP 2.0 KiB at 0x77");
    }
}
