//! `cargo xtask bench`: what tracing costs, each figure measured beside what it is compared with,
//! in one run, and written as tables into `docs/benchmarks.md`.
//!
//! - [`loops`]: slab-heavy loops under us and under others.
//! - [`programs`]: our BPF programs against empty ones.
//! - [`userspace`]: records a second.
//! - [`start`] and [`demo`]: what a user waits for.
//! - [`vm`]: mechanisms against each other, in an emulated machine.
//!
//! [`document`] keeps the page; [`figures`] and [`table`] are arithmetic and form.

mod demo;
mod document;
mod figures;
mod loops;
mod programs;
mod start;
mod table;
mod tracers;
mod turns;
mod userspace;
mod vm;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{process, setup, workspace};

#[derive(Args)]
pub struct Arguments {
    /// Only this part. Repeatable.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Rounds of the parts that alternate between tracers.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// The demo at full size, 20 groups of 20 000 connections: 4 GB of slab, minutes.
    #[arg(long)]
    full: bool,
    /// Also the part that boots a kernel (`--only vm` for it alone).
    #[arg(long)]
    vm: bool,
    /// Write the tables into docs/benchmarks.md; parts that were not run stay as they are there.
    #[arg(long)]
    write: bool,
    /// First install what is compared with: bpftrace and perf, from Debian.
    #[arg(long)]
    setup: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Slab-heavy loops: untraced, ours, bpftrace, perf.
    Loops,
    /// Run time of our BPF programs against empty ones on the same hooks.
    Programs,
    /// Decoding and the ledger, on recorded data.
    Userspace,
    /// From the start to programs attached; memory.
    Start,
    /// The demo, traced and not.
    Demo,
    /// Kprobe, fentry and raw tracepoint on one kernel, in QEMU.
    Vm,
}

impl Part {
    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// What the parts measure with.
struct Bench {
    kmem_trace: PathBuf,
    turns: PathBuf,
    rounds: u32,
    full: bool,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.setup {
        setup::rivals()?;
    }
    let wanted = |part: Part| {
        if arguments.only.is_empty() {
            part != Part::Vm || arguments.vm
        } else {
            arguments.only.contains(&part)
        }
    };
    let bench = build(arguments)?;
    let mut sections = Vec::new();
    for part in Part::value_variants() {
        if !wanted(*part) {
            continue;
        }
        eprintln!("measuring: {}", part.name());
        let begun = Instant::now();
        let section = match part {
            Part::Loops => loops::measure(&bench),
            Part::Programs => programs::measure(&bench),
            Part::Userspace => userspace::measure(),
            Part::Start => start::measure(&bench),
            Part::Demo => demo::measure(&bench),
            Part::Vm => vm::measure(),
        };
        let mut section = section.with_context(|| format!("benchmark {}", part.name()))?;
        section.part = part.name();
        section.taken = format!(
            "`cargo xtask bench --only {}{}` ({:.0} s), {}",
            part.name(),
            if arguments.full { " --full" } else { "" },
            begun.elapsed().as_secs_f64(),
            machine()?
        );
        println!("{}", section.markdown());
        sections.push(section);
    }
    if arguments.write {
        let path = workspace::root().join("docs/benchmarks.md");
        let page = fs::read_to_string(&path).unwrap_or_default();
        let page = document::with_sections(&page, &sections);
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("written into docs/benchmarks.md");
    }
    Ok(ExitCode::SUCCESS)
}

fn build(arguments: &Arguments) -> Result<Bench> {
    let built = workspace::build_executables(&[
        "build",
        "--release",
        "--package",
        "kmem-trace",
        "--bin",
        "kmem-trace",
        "--bench",
        "turns",
    ])?;
    let find = |begins: &str| {
        built
            .iter()
            .find(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(begins))
            })
            .cloned()
            .with_context(|| format!("cargo built no {begins}"))
    };
    Ok(Bench {
        kmem_trace: find("kmem-trace")?,
        turns: find("turns")?,
        rounds: arguments.rounds,
        full: arguments.full,
    })
}

/// Processor, memory and kernel, in one line.
fn machine() -> Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let meminfo = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let kernel = process::output(Command::new("uname").arg("-r"))?;
    let date = process::output(Command::new("date").arg("+%F"))?;
    Ok(format!(
        "{}, Linux {}, {}",
        date.trim(),
        kernel.trim(),
        processor_and_memory(&cpuinfo, &meminfo)
    ))
}

fn processor_and_memory(cpuinfo: &str, meminfo: &str) -> String {
    let value = |text: &str, key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .and_then(|rest| rest.split_once(':').map(|(_, value)| value.trim()))
            .map(str::to_owned)
    };
    let cpus = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let model = value(cpuinfo, "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let virtual_machine = cpuinfo.lines().any(|line| {
        line.starts_with("flags") && line.split_whitespace().any(|flag| flag == "hypervisor")
    });
    let kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
        .unwrap_or(0.0);
    format!(
        "{cpus} CPUs of {model}{}, {:.0} GiB",
        if virtual_machine {
            " in a virtual machine"
        } else {
            ""
        },
        kib / f64::from(1 << 20)
    )
}

/// A cgroup that is there as long as this.
struct Cgroup {
    dir: PathBuf,
    name: String,
}

impl Cgroup {
    fn new() -> Result<Self> {
        let name = format!("kmem-trace-bench-{}", std::process::id());
        let root = Path::new("/sys/fs/cgroup");
        let v1 = root.join("memory");
        let top = if v1.join("memory.usage_in_bytes").exists() {
            v1
        } else {
            root.to_path_buf()
        };
        let dir = top.join(&name);
        fs::create_dir(&dir)
            .with_context(|| format!("cannot make {}: benchmarks take root", dir.display()))?;
        let made = Self { dir, name };
        if !["memory.usage_in_bytes", "memory.current"]
            .iter()
            .any(|file| made.dir.join(file).exists())
        {
            bail!(
                "{} has no memory controller: add +memory to {}/cgroup.subtree_control",
                made.dir.display(),
                top.display()
            );
        }
        Ok(made)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its last process may be on its way out still.
        for _ in 0..50 {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("{} is left behind", self.dir.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_told_in_one_line() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t\t: fpu hypervisor\n\nprocessor\t: 1\n";
        let meminfo = "MemTotal:       24683060 kB\n";
        assert_eq!(
            processor_and_memory(cpuinfo, meminfo),
            "2 CPUs of Some CPU @ 3 GHz in a virtual machine, 24 GiB"
        );
    }
}
