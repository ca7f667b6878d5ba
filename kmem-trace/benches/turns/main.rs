//! What `cargo xtask bench` measures with: slab-heavy loops that are timed from inside, and the
//! emptiest program on a hook. Driven through standard input, one command a line; not for people.
//!
//! - `turns loop CGROUP CPU DIR` enters the cgroup, stays on the CPU, and answers `KIND N` by the
//!   nanoseconds that N turns took.
//! - `turns empty TRACEPOINT…` keeps an empty program on each raw tracepoint, and answers each line
//!   by `RUNS NANOSECONDS` for each of them, as the kernel counts while its BPF statistics are on.

mod empty;
mod kinds;

use std::{
    fs,
    io::{self, BufRead as _, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["loop", cgroup, cpu, dir] => answer_loops(Path::new(cgroup), cpu, Path::new(dir)),
        ["empty", ref tracepoints @ ..] if !tracepoints.is_empty() => answer_runs(tracepoints),
        // `cargo bench` runs all benchmarks.
        _ => {
            println!("turns: measures nothing by itself; `cargo xtask bench` drives it");
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("turns: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn answer_loops(cgroup: &Path, cpu: &str, dir: &Path) -> Result<()> {
    let procs = cgroup.join("cgroup.procs");
    fs::write(&procs, "0").with_context(|| format!("cannot enter {}", procs.display()))?;
    let mut cpus = CpuSet::new();
    cpus.set(cpu.parse().with_context(|| format!("no CPU: {cpu}"))?)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("cannot stay on {cpu}"))?;
    each_line(|line| {
        let Some((kind, turns)) = line.split_once(' ') else {
            bail!("not KIND N: {line}");
        };
        let took = kinds::run(kind, turns.parse()?, dir)?;
        Ok(took.as_nanos().to_string())
    })
}

fn answer_runs(tracepoints: &[&str]) -> Result<()> {
    let programs = tracepoints
        .iter()
        .map(|name| empty::Empty::attach(name))
        .collect::<Result<Vec<_>>>()?;
    println!("ready");
    each_line(|_| {
        let mut words = Vec::new();
        for program in &programs {
            let (runs, nanoseconds) = program.runs()?;
            words.push(format!("{runs} {nanoseconds}"));
        }
        Ok(words.join(" "))
    })
}

fn each_line(mut answer: impl FnMut(&str) -> Result<String>) -> Result<()> {
    let mut out = io::stdout();
    for line in io::stdin().lock().lines() {
        let said = answer(line?.trim())?;
        writeln!(out, "{said}")?;
        out.flush()?;
    }
    Ok(())
}
