//! `cargo xtask test`: all that a change must pass, stage by stage, and one line that sums up.

use std::io::{BufRead as _, BufReader};
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, ValueEnum};

use crate::libtest::{self, End, Tally, Test, Verdict};
use crate::{bpf, setup, vm, workspace};

#[derive(Args)]
pub struct Arguments {
    /// Leave out the stage that boots kernels.
    #[arg(long)]
    pub no_vm: bool,
    /// First install what the stages take (`cargo xtask setup`).
    #[arg(long)]
    pub setup: bool,
    /// Only this stage. Repeatable.
    #[arg(long, value_enum)]
    pub only: Vec<Stage>,
    /// Machines that run at a time in the VM stage; without it as many as there are CPUs.
    #[arg(long, default_value_t = crate::process::cpus())]
    pub jobs: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Stage {
    /// Formatting.
    Fmt,
    /// Lints.
    Clippy,
    /// Unit tests, recorded runs and documentation tests.
    Unit,
    /// The committed BPF object is what its sources give.
    Bpf,
    /// Live tests on this machine's kernel; they take root.
    Live,
    /// The same on other kernels, beside those.
    Vm,
}

/// kmem-trace's test targets that need a live kernel, and the program as it is shipped.
const OPTIMIZED: [&str; 4] = ["live", "abuse", "slab", "kernel"];

/// Longest that a machine may take, in seconds: emulated, and beside whatever else runs.
const PATIENCE_S: &str = "1800";

/// One machine per line: kernel, cgroup version, more for the kernel's command line, and what runs
/// there instead of the target `kernel`: another, and the names that its tests begin with.
const MATRIX: [(&str, &str, Option<&str>, Option<Part>); 5] = [
    ("6.1", "v1", None, None),
    ("6.12", "v2", None, Some(HOW_MUCH)),
    ("5.10", "v1", None, Some(WHO_AND_WHY)),
    ("6.1", "v1", None, Some(ABUSED)),
    ("6.12", "v2", Some("lockdown=confidentiality"), None),
];

type Part = (&'static str, &'static [&'static str]);

/// What depends most on the kernel; how traces end and what they refuse, the first machine shows, and
/// `cargo xtask matrix --all` on every kernel.
const HOW_MUCH: Part = (
    "kernel",
    &[
        "contract::events",
        "exact::a_",
        "exact::by_",
        "exact::two_traces_at",
        "kinds::",
        "life::",
        "slab::",
    ],
);

/// What takes a machine of its own, or a ledger that has to be exact.
const ABUSED: Part = ("abuse", &["ending::killed", "full::a_soak", "machine::"]);

/// Of slab, what finds payers, askers and causes; each load by itself takes minutes more
/// (`cargo xtask matrix --target slab`).
const WHO_AND_WHY: Part = (
    "slab",
    &[
        "attribution::",
        "causes::",
        "dead::",
        "events::",
        "sockets::",
    ],
);

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.setup {
        setup::main()?;
    }
    let is_wanted = |stage: &Stage| {
        if arguments.only.is_empty() {
            !(arguments.no_vm && *stage == Stage::Vm)
        } else {
            arguments.only.contains(stage)
        }
    };
    let wanted = Stage::value_variants().iter().copied().filter(is_wanted);
    // Live tests mostly wait, while emulated machines take the CPUs.
    let (last, first): (Vec<_>, Vec<_>) =
        wanted.partition(|stage| matches!(stage, Stage::Live | Stage::Vm));
    let mut total = Tally::default();
    for stage in first {
        total += run_and_say(stage, arguments.jobs);
    }
    total += std::thread::scope(|scope| {
        let beside = |stage| scope.spawn(move || run_and_say(stage, arguments.jobs));
        let running: Vec<_> = last.into_iter().map(beside).collect();
        let mut tally = Tally::default();
        for stage in running {
            tally += stage
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        tally
    });
    println!("{total}");
    if total == Tally::default() {
        bail!("nothing was run");
    }
    Ok(if total.failed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn run_and_say(stage: Stage, jobs: usize) -> Tally {
    let name = name(stage);
    println!("== {name}");
    let start = Instant::now();
    let tally = match run(stage, jobs) {
        Ok(tally) => tally,
        Err(error) => report(&[Test::failed(name.clone(), format!("{error:#}"))]),
    };
    println!(
        "== {name}: {tally} ({:.0} s)",
        start.elapsed().as_secs_f64()
    );
    tally
}

fn name(stage: Stage) -> String {
    stage
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

fn run(stage: Stage, jobs: usize) -> Result<Tally> {
    match stage {
        Stage::Fmt => check("fmt", &["fmt", "--all", "--check"]),
        Stage::Clippy => {
            let mut tally = check(
                "clippy",
                &[
                    "clippy",
                    "--quiet",
                    "--workspace",
                    "--all-targets",
                    "--",
                    "-D",
                    "warnings",
                ],
            )?;
            // A workspace of its own, which can use what was checked already.
            tally += check(
                "fuzz targets",
                &[
                    "check",
                    "--quiet",
                    "--manifest-path",
                    "fuzz/Cargo.toml",
                    "--target-dir",
                    &workspace::target().to_string_lossy(),
                ],
            )?;
            Ok(tally)
        }
        Stage::Unit => {
            let mut names = test_targets()?;
            // Those have stages of their own.
            names.retain(|name| !OPTIMIZED.contains(&name.as_str()));
            let mut arguments = vec!["test", "--workspace", "--no-fail-fast", "--lib", "--bins"];
            for name in &names {
                arguments.extend(["--test", name]);
            }
            let mut tally = cargo_test("unit", &arguments)?;
            tally += cargo_test("doc", &["test", "--workspace", "--no-fail-fast", "--doc"])?;
            Ok(tally)
        }
        Stage::Bpf => {
            bpf::main(&bpf::Arguments { check: true })?;
            Ok(report(&[passed("bpf")]))
        }
        Stage::Live => {
            // In one go: linking one keeps one CPU busy.
            workspace::build_with_tests(&OPTIMIZED)?;
            let mut arguments = vec!["test", "--release", "--package", "kmem-trace"];
            for name in ["live", "abuse", "slab"] {
                arguments.extend(["--test", name]);
            }
            arguments.extend(["--", "--test-threads=1", "--show-output"]);
            cargo_test("live", &arguments)
        }
        Stage::Vm => machines(jobs),
    }
}

fn machines(jobs: usize) -> Result<Tally> {
    // The arguments as a person would give them.
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        machine: vm::Arguments,
    }
    let built = workspace::build_with_tests(&OPTIMIZED)?;
    let mut all = Vec::new();
    for (kernel, cgroup, append, part) in MATRIX {
        let mut words = vec![
            "vm",
            "--kernel",
            kernel,
            "--cgroup",
            cgroup,
            "--timeout",
            PATIENCE_S,
        ];
        if let Some(append) = append {
            words.extend(["--append", append]);
        }
        let mut machine = Line::try_parse_from(words)?.machine;
        machine.binary = Some(built.get("kmem-trace")?);
        machine.tests = vec![built.get(part.map_or("kernel", |(target, _)| target))?];
        if let Some((target, names)) = part {
            machine.apart = Some(target);
            machine.test_arguments = names.iter().map(|name| (*name).to_owned()).collect();
        }
        all.push(machine);
    }
    vm::run_tests(&all, jobs)
}

fn passed(name: &str) -> Test {
    Test {
        name: name.to_owned(),
        verdict: Verdict::Passed,
        detail: String::new(),
    }
}

/// A cargo command that passes or fails as a whole.
fn check(name: &str, arguments: &[&str]) -> Result<Tally> {
    succeed(arguments)?;
    Ok(report(&[passed(name)]))
}

fn succeed(arguments: &[&str]) -> Result<()> {
    let status = workspace::cargo()
        .args(arguments)
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("`cargo {}` ended with {status}", arguments.join(" "));
    }
    Ok(())
}

/// Runs `cargo test`, lets its output pass and reads it.
fn cargo_test(name: &str, arguments: &[&str]) -> Result<Tally> {
    let mut child = workspace::cargo()
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let Some(stdout) = child.stdout.take() else {
        bail!("cargo has no output");
    };
    let mut output = String::new();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read what cargo prints")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        output.push_str(&line);
        output.push('\n');
    }
    let status = child.wait()?;
    let tests = libtest::read(name, &output, &End::Exit(status.code().unwrap_or(-1)));
    // Passes and failures have passed by; only what the harness does not say itself is said here.
    for test in &tests {
        if test.verdict == Verdict::Failed && test.name == name {
            println!("test {name} ... FAILED\n{}", test.detail);
        }
    }
    Ok(Tally::of(&tests))
}

/// The names of kmem-trace's integration tests.
fn test_targets() -> Result<Vec<String>> {
    let metadata = crate::process::output(workspace::cargo().args([
        "metadata",
        "--format-version=1",
        "--no-deps",
    ]))?;
    let metadata: serde_json::Value =
        serde_json::from_str(&metadata).context("cargo metadata printed no JSON")?;
    let packages = metadata["packages"].as_array();
    Ok(packages
        .into_iter()
        .flatten()
        .flat_map(|package| package["targets"].as_array().into_iter().flatten())
        .filter(|target| target["kind"][0] == "test")
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect())
}

fn report(tests: &[Test]) -> Tally {
    for test in tests {
        println!("test {} ... {}", test.name, test.verdict);
        if test.verdict != Verdict::Passed {
            println!("{}", test.detail);
        }
    }
    Tally::of(tests)
}
