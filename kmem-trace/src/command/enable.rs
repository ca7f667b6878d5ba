//! `kmem-trace enable`: switches a v1 cgroup's kernel memory accounting on without limiting it.
//!
//! The classic recipe: a limit, then none (0, then -1). Kernels that account on demand take the
//! first write to `memory.kmem.limit_in_bytes` as the switch; on all later ones the same write is
//! a limit of nothing for a cgroup in use, or nothing at all. So everything is looked at first, and
//! nothing is written but where the kernel is known to wait for it.

use std::{
    fmt, fs,
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::cli::EnableArgs;
use crate::{
    hooks::{
        accounting::{self, LimitWrite, Switch},
        inspect::KERNEL_BTF,
    },
    kernel::{
        btf::KernelBtf,
        cgroupfs::{self, Hierarchy, MemoryMount},
        symbols,
    },
    view::{name, size::human},
};

const OUTPUT: &str = "cannot write the output";
const LIMIT: &str = "memory.kmem.limit_in_bytes";
/// Limits from here on are no limits: the greatest, rounded down to pages of up to 64 KiB.
const UNLIMITED: u64 = i64::MAX as u64 & !0xffff;

/// Everything the decision depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    hierarchy: Hierarchy,
    switch: Switch,
    /// Booted with `cgroup.memory=nokmem`.
    nokmem: bool,
    root: bool,
    figures: Figures,
    /// Tasks in the cgroup itself.
    tasks: usize,
    /// Cgroups directly below.
    children: usize,
    use_hierarchy: bool,
}

/// What the cgroup's files say, in bytes; `None` where there is no such file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Figures {
    limit: Option<u64>,
    usage: Option<u64>,
    max_usage: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Decision {
    /// Write.
    Switch,
    /// Nothing needs to be done, because …
    Needless(String),
    /// It cannot be done, because …, and what helps.
    Refuse(String),
}

/// Switches accounting on, or says why there is nothing to do.
///
/// # Errors
/// Where it cannot be done: nothing has been written then, or the error says what.
pub fn main(args: &EnableArgs) -> Result<()> {
    let mount = MemoryMount::find()?;
    let cgroup = cgroupfs::find(&mount, &args.cgroup)?;
    let seen = look(&cgroup.dir, mount.hierarchy, args.btf.as_deref())?;
    let mut out = io::stdout().lock();
    let before = State {
        figures: seen.figures,
        active: active(&seen),
    };
    let path = name::path(cgroup.path_in_hierarchy.as_os_str());
    writeln!(out, "{path}\nbefore  {before}").context(OUTPUT)?;
    match decide(&seen) {
        Decision::Refuse(why) => bail!("{why}"),
        Decision::Needless(why) => {
            writeln!(out, "nothing to do, nothing written: {why}").context(OUTPUT)?;
        }
        Decision::Switch => {
            let path = cgroup.dir.join(LIMIT);
            let undo = seen
                .figures
                .limit
                .map_or_else(|| "-1".to_owned(), |limit| limit.to_string());
            switch(&path, &undo, &mut |text| {
                // Never made anew: a file that is gone is an error.
                fs::OpenOptions::new()
                    .write(true)
                    .open(&path)?
                    .write_all(text.as_bytes())
            })?;
            let now = Figures::of(&cgroup.dir)?;
            let after = State {
                figures: now,
                active: Some(true),
            };
            writeln!(out, "after   {after}").context(OUTPUT)?;
        }
    }
    Ok(())
}

/// Decides; writes nothing.
fn decide(seen: &Seen) -> Decision {
    let refuse = |why: &str| Decision::Refuse(format!("{why}; nothing was written"));
    if seen.nokmem && seen.switch != Switch::OnDemand {
        return refuse(
            "this kernel was booted with cgroup.memory=nokmem, which switches kernel memory accounting off for all cgroups: boot without it",
        );
    }
    if seen.hierarchy == Hierarchy::V2 {
        return Decision::Needless(
            "cgroup v2 always accounts kernel memory, and has no switch for it".to_owned(),
        );
    }
    match seen.switch {
        Switch::AlwaysOn(write) => {
            let limit = match (seen.figures.limit, write) {
                (None, _) => format!("{LIMIT} is gone from this kernel"),
                (_, LimitWrite::Limits) => format!("a write to {LIMIT} would only limit it"),
                (_, LimitWrite::Nothing) => {
                    format!("a write to {LIMIT} has no effect in this kernel")
                }
                (_, LimitWrite::Unknown) => {
                    format!("a write to {LIMIT} would limit it, or have no effect")
                }
            };
            return Decision::Needless(format!(
                "this kernel accounts kernel memory of every cgroup from its birth, and {limit}"
            ));
        }
        Switch::Unknown => {
            return refuse(
                "cannot tell whether this kernel accounts kernel memory always or on demand, and a wrong write would limit the cgroup to nothing: run as root so that /proc/kallsyms is readable, or pass --btf FILE",
            );
        }
        Switch::OnDemand => {}
    }
    if seen.figures.limit.is_none() {
        return refuse(&format!(
            "the cgroup has no {LIMIT}: this kernel is built without CONFIG_MEMCG_KMEM and cannot account kernel memory"
        ));
    }
    if seen.root {
        return refuse(
            "the root cgroup takes no limit, so its kernel memory cannot be accounted: name a cgroup below it",
        );
    }
    if active(seen) == Some(true) {
        return Decision::Needless("accounting is active already".to_owned());
    }
    if seen.tasks > 0 {
        let tasks = plural(seen.tasks, "task is", "tasks are");
        return refuse(&format!(
            "{tasks} already in it, and the kernel answers EBUSY then: make a fresh cgroup, switch it on there, then move or start the tasks in it"
        ));
    }
    if seen.children > 0 && seen.use_hierarchy {
        let children = plural(seen.children, "cgroup is", "cgroups are");
        return refuse(&format!(
            "{children} below it, and the kernel answers EBUSY then: switch it on before making cgroups below, which inherit it"
        ));
    }
    Decision::Switch
}

/// Whether kernel memory is accounted; `None` where files do not tell.
fn active(seen: &Seen) -> Option<bool> {
    let Figures {
        limit,
        usage,
        max_usage,
    } = seen.figures;
    let used = usage.is_some_and(|bytes| bytes > 0) || max_usage.is_some_and(|bytes| bytes > 0);
    match seen.switch {
        _ if used => Some(true),
        Switch::AlwaysOn(_) => Some(!seen.nokmem),
        _ if seen.hierarchy == Hierarchy::V2 => Some(!seen.nokmem),
        Switch::OnDemand if limit.is_some_and(|bytes| bytes < UNLIMITED) => Some(true),
        // Tasks would use some, had it been switched on before they came.
        Switch::OnDemand if seen.tasks > 0 => Some(false),
        _ => None,
    }
}

/// 0, then -1. If the second fails, the first is taken back.
fn switch(path: &Path, undo: &str, write: &mut dyn FnMut(&str) -> io::Result<()>) -> Result<()> {
    if let Err(error) = write("0") {
        bail!(
            "cannot write 0 to {}: {}; nothing was changed",
            path.display(),
            meaning(&error)
        );
    }
    let Err(error) = write("-1") else {
        return Ok(());
    };
    let failed = format!(
        "wrote 0 to {0}, but not -1: {1}",
        path.display(),
        meaning(&error)
    );
    match write(undo) {
        Ok(()) => bail!("{failed}; the limit is back at {undo}, accounting stays on"),
        Err(again) => bail!(
            "{failed}; putting the limit back failed too ({again}): kernel allocations in this cgroup will fail until somebody writes -1 to that file, or removes the cgroup"
        ),
    }
}

/// An errno in words, as this file means it.
fn meaning(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EBUSY) => {
            "EBUSY: a task or a cgroup came into it meanwhile; try again on a fresh one".to_owned()
        }
        Some(libc::EACCES | libc::EPERM) => "not allowed: run as root".to_owned(),
        Some(libc::EROFS) => {
            "the cgroup file system is mounted read-only: run outside the container".to_owned()
        }
        Some(libc::EOPNOTSUPP) => "EOPNOTSUPP: this kernel dropped kmem limits".to_owned(),
        _ => error.to_string(),
    }
}

/// Reads everything; writes nothing.
fn look(dir: &Path, hierarchy: Hierarchy, btf_file: Option<&Path>) -> Result<Seen> {
    let btf = match (
        KernelBtf::load(btf_file.unwrap_or(Path::new(KERNEL_BTF))),
        btf_file,
    ) {
        (Ok(btf), _) => Some(btf),
        (Err(error), Some(_)) => return Err(error.into()),
        (Err(_), None) => None,
    };
    let found = symbols::kallsyms(&accounting::symbols_wanted()).ok();
    let has = |name: &str| {
        found
            .as_ref()
            .is_some_and(|symbols| symbols.has_function(name))
    };
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let tasks = read(&dir.join("tasks"))?.unwrap_or_default();
    let children = fs::read_dir(dir)
        .with_context(|| format!("cannot list {}", dir.display()))?
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .count();
    Ok(Seen {
        hierarchy,
        switch: accounting::kmem_switch(btf.as_ref(), &has),
        nokmem: nokmem(&cmdline),
        root: dir.join("release_agent").exists(),
        figures: Figures::of(dir)?,
        tasks: tasks.lines().count(),
        children,
        use_hierarchy: read(&dir.join("memory.use_hierarchy"))?
            .is_none_or(|text| text.trim() != "0"),
    })
}

impl Figures {
    fn of(dir: &Path) -> Result<Self> {
        let number = |file: &str| -> Result<Option<u64>> {
            let path = dir.join(file);
            let text = read(&path)?;
            let value = text.map(|text| text.trim().parse()).transpose();
            value.with_context(|| format!("{} is not a number", path.display()))
        };
        Ok(Self {
            limit: number(LIMIT)?,
            usage: number("memory.kmem.usage_in_bytes")?,
            max_usage: number("memory.kmem.max_usage_in_bytes")?,
        })
    }
}

/// A file's text; `None` where there is no such file.
fn read(path: &PathBuf) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Whether the kernel's command line has `cgroup.memory=nokmem`, perhaps among others.
fn nokmem(cmdline: &str) -> bool {
    cmdline
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("cgroup.memory="))
        .any(|list| list.split(',').any(|word| word == "nokmem"))
}

/// A cgroup's accounting in one line.
struct State {
    figures: Figures,
    active: Option<bool>,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = match self.figures.limit {
            None => "no such file".to_owned(),
            Some(limit) if limit >= UNLIMITED => "none".to_owned(),
            Some(limit) => human(limit),
        };
        let usage = self.figures.usage.map_or("no such file".to_owned(), human);
        let active = match self.active {
            Some(true) => "active",
            Some(false) => "not active",
            None => "not active, as far as files tell",
        };
        write!(
            f,
            "kmem limit {limit} · kmem usage {usage} · accounting {active}"
        )
    }
}

fn plural(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fresh v1 cgroup of a kernel that accounts on demand.
    fn fresh() -> Seen {
        Seen {
            hierarchy: Hierarchy::V1,
            switch: Switch::OnDemand,
            nokmem: false,
            root: false,
            figures: Figures {
                limit: Some(i64::MAX as u64),
                usage: Some(0),
                max_usage: Some(0),
            },
            tasks: 0,
            children: 0,
            use_hierarchy: true,
        }
    }

    fn refused(seen: &Seen, word: &str) {
        match decide(seen) {
            Decision::Refuse(why) => {
                assert!(why.contains(word), "{why}");
                assert!(
                    why.ends_with("nothing was written") && !why.contains('\n'),
                    "{why}"
                );
            }
            other => panic!("{other:?}"),
        }
    }

    fn needless(seen: &Seen, word: &str) {
        match decide(seen) {
            Decision::Needless(why) => assert!(why.contains(word), "{why}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_a_fresh_cgroup_of_a_kernel_that_waits_for_it_is_written_to() {
        assert_eq!(decide(&fresh()), Decision::Switch);
        assert_eq!(
            decide(&Seen {
                children: 2,
                use_hierarchy: false,
                ..fresh()
            }),
            Decision::Switch
        );
    }

    #[test]
    fn what_the_kernel_would_answer_with_ebusy_is_refused_before() {
        refused(
            &Seen {
                tasks: 3,
                ..fresh()
            },
            "3 tasks are",
        );
        refused(
            &Seen {
                tasks: 1,
                ..fresh()
            },
            "1 task is",
        );
        refused(
            &Seen {
                children: 1,
                ..fresh()
            },
            "1 cgroup is",
        );
    }

    #[test]
    fn what_is_on_is_left_alone() {
        let used = Figures {
            usage: Some(4096),
            ..fresh().figures
        };
        needless(
            &Seen {
                figures: used,
                tasks: 1,
                ..fresh()
            },
            "active already",
        );
        let was_used = Figures {
            max_usage: Some(4096),
            ..fresh().figures
        };
        needless(
            &Seen {
                figures: was_used,
                ..fresh()
            },
            "active already",
        );
        let limited = Figures {
            limit: Some(1 << 20),
            ..fresh().figures
        };
        needless(
            &Seen {
                figures: limited,
                ..fresh()
            },
            "active already",
        );
        for (write, word) in [
            (LimitWrite::Limits, "only limit"),
            (LimitWrite::Nothing, "no effect in this kernel"),
            (LimitWrite::Unknown, "or have no effect"),
        ] {
            needless(
                &Seen {
                    switch: Switch::AlwaysOn(write),
                    tasks: 1,
                    ..fresh()
                },
                word,
            );
        }
        needless(
            &Seen {
                hierarchy: Hierarchy::V2,
                switch: Switch::Unknown,
                ..fresh()
            },
            "v2",
        );
    }

    #[test]
    fn a_dropped_file_is_no_failure_where_accounting_is_always_on() {
        let without = Seen {
            figures: Figures::default(),
            ..fresh()
        };
        needless(
            &Seen {
                switch: Switch::AlwaysOn(LimitWrite::Unknown),
                ..without.clone()
            },
            "gone",
        );
        refused(&without, "CONFIG_MEMCG_KMEM");
    }

    #[test]
    fn what_cannot_be_switched_on_is_refused() {
        refused(
            &Seen {
                root: true,
                ..fresh()
            },
            "root",
        );
        refused(
            &Seen {
                switch: Switch::Unknown,
                ..fresh()
            },
            "cannot tell",
        );
        for hierarchy in [Hierarchy::V1, Hierarchy::V2] {
            let switch = Switch::AlwaysOn(LimitWrite::Limits);
            refused(
                &Seen {
                    nokmem: true,
                    switch,
                    hierarchy,
                    ..fresh()
                },
                "nokmem",
            );
        }
    }

    #[test]
    fn nokmem_is_found_among_other_words() {
        assert!(nokmem("quiet cgroup.memory=nokmem"));
        assert!(nokmem("cgroup.memory=nosocket,nokmem ro"));
        assert!(!nokmem("cgroup.memory=nosocket xcgroup.memory=nokmem"));
        assert!(!nokmem("cgroup.memory=nokmemory"));
    }

    fn written(fail: &[usize], errno: i32) -> (Vec<String>, Option<String>) {
        let mut texts = Vec::new();
        let result = switch(Path::new("limit"), "9223372036854775807", &mut |text| {
            texts.push(text.to_owned());
            let failed = fail.contains(&texts.len());
            if failed {
                Err(io::Error::from_raw_os_error(errno))
            } else {
                Ok(())
            }
        });
        (texts, result.err().map(|error| error.to_string()))
    }

    #[test]
    fn a_limit_of_nothing_then_none() {
        assert_eq!(
            written(&[], 0),
            (vec!["0".to_owned(), "-1".to_owned()], None)
        );
    }

    #[test]
    fn nothing_half_done_is_left_behind_in_silence() {
        let (texts, error) = written(&[1], libc::EBUSY);
        assert_eq!(texts, ["0"]);
        assert!(
            error.is_some_and(
                |error| error.contains("EBUSY") && error.contains("nothing was changed")
            )
        );
        let (texts, error) = written(&[2], libc::EINVAL);
        assert_eq!(texts, ["0", "-1", "9223372036854775807"]);
        assert!(error.is_some_and(|error| error.contains("is back at 9223372036854775807")));
        let (texts, error) = written(&[2, 3], libc::EIO);
        assert_eq!(texts.len(), 3);
        assert!(error.is_some_and(|error| error.contains("until somebody writes -1")));
    }
}
