//! `kmem-trace explain`: which figures of this kernel add up to a cgroup's usage. Without root
//! wherever the files may be read, and without BPF but for what v1 has no files for.

use std::{fs, io::ErrorKind, path::Path};

use anyhow::{Context as _, Result};
use aya::util::online_cpus;

use super::{
    cli::{ExplainArgs, Format},
    output,
    session::attaching,
};
use crate::{
    hooks::{
        accounting, allowed::Allowed, features::Feature, inspect::KERNEL_BTF, memcg_stat::MemcgStat,
    },
    kernel::{
        btf::KernelBtf,
        cgroupfs::{self, CgroupDir, Hierarchy, MemoryMount},
        proc, security,
    },
    reconcile::{
        explain::{Circumstances, Explanation, explain},
        fields::{Figures, KMEM},
        kinds::{self, Kinds},
    },
    view::{
        explain::{self as view, Explained},
        json::{self, Line},
        name,
    },
};

/// Readings of which the one is taken during which the usage moved least.
const ATTEMPTS: usize = 5;

/// Prints the explanation.
///
/// # Errors
/// Where there is no such cgroup, its files may not be read, or the output does not take it.
pub fn main(args: &ExplainArgs) -> Result<()> {
    let mount = MemoryMount::find()?;
    let cgroup = match &args.cgroup {
        Some(cgroup) => cgroupfs::find(&mount, cgroup)?,
        None => cgroupfs::of_pid(&mount, std::process::id())?,
    };
    let btf = KernelBtf::load(args.btf.as_deref().unwrap_or(Path::new(KERNEL_BTF)));
    let btf = match (&args.btf, btf) {
        (_, Ok(btf)) => Some(btf),
        (Some(_), Err(error)) => return Err(error.into()),
        (None, Err(error)) => {
            log::info!("no type information ({error}): the bound assumes the worst of all kernels");
            None
        }
    };
    let files = Files::of(&cgroup, mount.hierarchy);
    let circumstances = circumstances(&cgroup, mount.hierarchy, btf.as_ref());
    let mut counters = (files.figures == Figures::V1).then(|| counters(btf.as_ref(), &args.forbid));
    let mut best: Option<Read> = None;
    for _ in 0..ATTEMPTS {
        let read = files.read(&cgroup, &circumstances, counters.as_mut())?;
        if best.as_ref().is_none_or(|least| read.skew < least.skew) {
            best = Some(read);
        }
        if best.as_ref().is_some_and(|best| best.skew == 0) {
            break;
        }
    }
    let Read {
        explanation, kinds, ..
    } = best.context("nothing was read")?;
    let explained = Explained {
        kernel: proc::release(),
        hierarchy: match mount.hierarchy {
            Hierarchy::V1 => "v1",
            Hierarchy::V2 => "v2",
        },
        cgroup: name::path(cgroup.path_in_hierarchy.as_os_str()),
        cgroup_id: cgroup.id,
        usage_file: files.usage,
        root: files.root,
        cpus: circumstances.online_cpus,
        cgroups: circumstances.cgroups,
        flushed: circumstances.flushed,
        kernel_counters: kinds,
        explanation,
    };
    let mut out = output::open(None, args.format)?;
    let written = match args.format {
        Format::Json => json::write(&mut out, &Line::Explain(&explained)),
        Format::Table => view::table(&mut out, &explained),
    };
    written.context("cannot write the output")
}

/// The kernel's own counters of kernel memory, or why there are none.
fn counters(btf: Option<&KernelBtf>, forbidden: &[Feature]) -> Result<MemcgStat, String> {
    let btf = btf.ok_or("this kernel has no type information (BTF)")?;
    attaching::raise_memlock();
    // Only the verdict on reads counts, which needs neither types nor tracefs.
    let allowed = Allowed::probe(security::lockdown(), None, Ok(()), forbidden);
    MemcgStat::open(btf, &allowed, None).map_err(|why| {
        if nix::unistd::geteuid().is_root() {
            why
        } else {
            format!("{why}; run as root")
        }
    })
}

/// One reading.
struct Read {
    /// Bytes that the usage moved by meanwhile.
    skew: u64,
    explanation: Explanation,
    kinds: Option<Kinds>,
}

/// The files of a cgroup that have to do with its usage.
struct Files {
    root: bool,
    figures: Figures,
    usage: &'static str,
    /// Each holds one number; those that this kernel has not are left out.
    beside: &'static [&'static str],
}

impl Files {
    fn of(cgroup: &CgroupDir, hierarchy: Hierarchy) -> Self {
        match hierarchy {
            Hierarchy::V1 => {
                // A file that the kernel makes in the hierarchy's root alone.
                let root = cgroup.dir.join("release_agent").exists();
                Self {
                    root,
                    figures: if root { Figures::V1Root } else { Figures::V1 },
                    usage: "memory.usage_in_bytes",
                    beside: &[
                        "memory.kmem.usage_in_bytes",
                        "memory.kmem.tcp.usage_in_bytes",
                        "memory.memsw.usage_in_bytes",
                    ],
                }
            }
            Hierarchy::V2 => Self {
                // One that it makes everywhere but there.
                root: !cgroup.dir.join("cgroup.type").exists(),
                figures: Figures::V2,
                usage: "memory.current",
                beside: &["memory.swap.current", "memory.zswap.current"],
            },
        }
    }

    /// One reading.
    fn read(
        &self,
        cgroup: &CgroupDir,
        circumstances: &Circumstances,
        counters: Option<&mut Result<MemcgStat, String>>,
    ) -> Result<Read> {
        let missing = || {
            format!(
                "{} is no memory cgroup: the memory controller is not enabled for it (as root: echo +memory > cgroup.subtree_control in its parent)",
                cgroup.dir.display()
            )
        };
        let stat = cgroupfs::stat(&cgroup.dir).with_context(missing)?;
        let before = number(&cgroup.dir, self.usage)?;
        // Twice: the first reading flushed, so that little waits in per-CPU counters now.
        let stat_now = cgroupfs::stat(&cgroup.dir).unwrap_or(stat);
        // Right after the flush, so that they are of the same moment.
        let counted = counters.map(|counters| match counters {
            Ok(stat) => stat.read(&cgroup.dir, cgroup.id, circumstances.page_bytes),
            Err(why) => Err(why.clone()),
        });
        let mut beside = Vec::new();
        for file in self.beside {
            if let Some(value) = number(&cgroup.dir, file)? {
                beside.push((*file, value));
            }
        }
        let after = number(&cgroup.dir, self.usage)?;
        if after.is_none() && !(self.root && self.figures == Figures::V2) {
            anyhow::bail!(missing());
        }
        let skew = before
            .zip(after)
            .map_or(0, |(before, after)| before.abs_diff(after));
        let circumstances = Circumstances {
            skew_bytes: skew,
            ..*circumstances
        };
        let mut items: Vec<(&str, u64)> = stat_now.items().collect();
        items.sort_unstable();
        items.extend(beside);
        let judged = counted.map(|counted| {
            let lag = kinds::lag_bytes(&circumstances);
            counted.and_then(|found| kinds::judge(&found, &shown(&items), lag))
        });
        let kinds = judged.map(|judged| match judged {
            Ok((figures, said)) => {
                items.extend(figures);
                said
            }
            Err(why) => Kinds::NotRead { why },
        });
        Ok(Read {
            skew,
            explanation: explain(self.figures, after, items, &circumstances),
            kinds,
        })
    }
}

/// What v1's files show of what the counters hold, too.
fn shown(items: &[(&str, u64)]) -> kinds::Files {
    let amount = |name: &str| items.iter().find(|(it, _)| *it == name).map(|(_, it)| *it);
    let either = |total: &str, own: &str| amount(total).or_else(|| amount(own)).unwrap_or(0);
    kinds::Files {
        anon_bytes: either("total_rss", "rss"),
        file_bytes: either("total_cache", "cache"),
        kmem_bytes: amount(KMEM),
    }
}

fn circumstances(
    cgroup: &CgroupDir,
    hierarchy: Hierarchy,
    btf: Option<&KernelBtf>,
) -> Circumstances {
    Circumstances {
        page_bytes: proc::own::page_bytes(),
        online_cpus: online_cpus().map_or(1, |cpus| cpus.len()) as u64,
        cached_per_cpu: accounting::cached_per_cpu(btf),
        batched_per_cpu: accounting::batched_per_cpu(btf),
        cgroups: cgroupfs::walk(cgroup).len() as u64 + dying(&cgroup.dir, hierarchy),
        flushed: accounting::flushes_stat(btf),
        skew_bytes: 0,
    }
}

/// Removed cgroups below that still hold pages. v1 does not tell.
fn dying(dir: &Path, hierarchy: Hierarchy) -> u64 {
    if hierarchy == Hierarchy::V1 {
        return 0;
    }
    let text = fs::read_to_string(dir.join("cgroup.stat")).unwrap_or_default();
    let dying = text
        .lines()
        .find_map(|line| line.strip_prefix("nr_dying_descendants "));
    dying
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

/// A file with one number; `None` where this kernel has no such file.
fn number(dir: &Path, file: &str) -> Result<Option<u64>> {
    let path = dir.join(file);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let value = text.trim().parse();
            Ok(Some(value.with_context(|| {
                format!("{} is not a number", path.display())
            })?))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}
