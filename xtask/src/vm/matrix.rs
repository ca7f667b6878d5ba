//! `cargo xtask matrix`: the kernel tests on every kernel that the tool is to be trusted on, one
//! machine after another, and each kernel's plan against the one checked in.
//!
//! A kernel that the mirror does not have today is reported as skipped, by name.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Args;

use super::kernel::Line;
use super::{Cgroup, module};
use crate::libtest::{Tally, Test, Verdict};
use crate::workspace;

/// Kernel line, or several of which the first that the mirror has counts, and cgroup version.
const MATRIX: [(&[&str], Cgroup); 9] = [
    (&["5.10"], Cgroup::V1),
    (&["5.10"], Cgroup::V2),
    (&["6.1"], Cgroup::V1),
    (&["6.1"], Cgroup::V2),
    (&["6.1-rt"], Cgroup::V1),
    (&["6.12"], Cgroup::V2),
    (&["6.17", "6.16"], Cgroup::V2),
    (&["7.0"], Cgroup::V2),
    (&["newest"], Cgroup::V2),
];

/// A kernel booted to charge nobody for kernel memory, and the tests of slab that ask about that.
const NOKMEM: (&str, Cgroup, &str, &str) = (
    "5.10",
    Cgroup::V1,
    "cgroup.memory=nokmem",
    "booted_with_nokmem",
);

/// The kernel that the module with old kernels' functions is built for.
const MODULE_FOR: (&str, &str) = ("6.1", "v1");

/// Test targets, in the order in which they run: the plan first, on an untouched kernel.
const TARGETS: [&str; 3] = ["plan", "kernel", "limits"];

/// And with `--all`, for they take minutes a kernel: what kernels have that nobody can boot (candidates
/// struck out, features forbidden, old functions in a module), and every load by itself against what
/// the kernel counts.
const LONG_TARGETS: [&str; 2] = ["legacy", "slab"];

/// Seconds that a machine may take, and one that runs [`LONG_TARGETS`] too.
const TIMEOUT: u64 = 600;
const LONG_TIMEOUT: u64 = 2400;

/// Tests that ask the same of every kernel: `cargo xtask test` has them run on two, the matrix on
/// each with `--all` only. What is left is what a kernel decides: is the ledger exact by kprobe and
/// by fentry, what follows a limit write, which plan fits. Slab has a target of its own.
const SAME_EVERYWHERE: [&str; 8] = [
    "exact::a_",
    "exact::two_",
    "life::",
    "ending::",
    "refusals::",
    "contract::",
    "lockdown::",
    "recording::",
];

#[derive(Args)]
pub struct Arguments {
    /// Run every test on each kernel, not only those whose answer a kernel decides, and the targets
    /// `legacy` and `slab` too.
    #[arg(long)]
    pub all: bool,
    /// Take the plans as they are now for the ones to compare with from now on.
    #[arg(long)]
    pub update: bool,
    /// Only kernels of this line. Repeatable.
    #[arg(long = "kernel", value_name = "LINE")]
    pub kernels: Vec<Line>,
    /// Test targets to run, instead of plan, kernel and limits; such as legacy or slab. Repeatable.
    #[arg(long = "target", value_name = "NAME")]
    pub targets: Vec<String>,
    /// Machines that run at a time; without it as many as there are CPUs.
    #[arg(long, default_value_t = crate::process::cpus())]
    pub jobs: usize,
    /// Fetch the package lists even if they are fresh.
    #[arg(long)]
    pub refresh: bool,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let start = Instant::now();
    let tally = run(arguments)?;
    println!("{tally} in {} s", start.elapsed().as_secs());
    Ok(if tally.failed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

impl Arguments {
    /// The test targets that these words ask for.
    fn wanted(&self) -> Vec<String> {
        if !self.targets.is_empty() {
            return self.targets.clone();
        }
        let long = LONG_TARGETS.into_iter().filter(|_| self.all);
        TARGETS.into_iter().chain(long).map(str::to_owned).collect()
    }
}

/// Runs it all and counts.
pub fn run(arguments: &Arguments) -> Result<Tally> {
    let wanted = arguments.wanted();
    let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let built = workspace::build_with_tests(&names)?;
    let call = super::Arguments {
        binary: Some(built.get("kmem-trace")?),
        tests: names
            .iter()
            .map(|name| built.get(name))
            .collect::<Result<_>>()?,
        // Whoever names targets wants all of them.
        test_arguments: if arguments.all || !arguments.targets.is_empty() {
            Vec::new()
        } else {
            SAME_EVERYWHERE
                .iter()
                .flat_map(|name| ["--skip".to_owned(), (*name).to_owned()])
                .collect()
        },
        timeout: if wanted.iter().any(|it| LONG_TARGETS.contains(&it.as_str())) {
            LONG_TIMEOUT
        } else {
            TIMEOUT
        },
        refresh: arguments.refresh,
        ..super::Arguments::default()
    };
    let mut calls = Vec::new();
    for (lines, cgroup) in MATRIX {
        let lines = lines
            .iter()
            .map(|line| line.parse::<Line>().map_err(anyhow::Error::msg))
            .collect::<Result<Vec<_>>>()?;
        if !arguments.kernels.is_empty() && !lines.iter().any(|it| arguments.kernels.contains(it)) {
            continue;
        }
        let mut found = None;
        for line in &lines {
            if module::on_mirror(line)? {
                found = Some(line);
                break;
            }
        }
        let Some(line) = found.or(lines.first()) else {
            continue;
        };
        calls.push(super::Arguments {
            kernels: vec![line.clone()],
            cgroup,
            // A kernel that is not there is reported as skipped; it needs nothing.
            files: if found.is_some() {
                files(line, cgroup)?
            } else {
                Vec::new()
            },
            ..call.clone()
        });
    }
    let as_booted = calls.len();
    calls.extend(without_accounting(arguments, &call)?);
    let mut total = super::run_tests(&calls, arguments.jobs)?;
    if wanted.iter().any(|target| target == "plan") {
        for call in &calls[..as_booted] {
            for line in &call.kernels {
                if module::on_mirror(line)? {
                    total += compare(line, call.cgroup, arguments.update)?;
                }
            }
        }
    }
    Ok(total)
}

/// The row of [`NOKMEM`], where neither other kernels nor other targets are asked for.
fn without_accounting(
    arguments: &Arguments,
    call: &super::Arguments,
) -> Result<Option<super::Arguments>> {
    let (line, cgroup, words, tests) = NOKMEM;
    let line: Line = line.parse().map_err(anyhow::Error::msg)?;
    let other_kernels = !arguments.kernels.is_empty() && !arguments.kernels.contains(&line);
    if other_kernels || !arguments.targets.is_empty() {
        return Ok(None);
    }
    Ok(Some(super::Arguments {
        kernels: vec![line],
        cgroup,
        append: vec![words.to_owned()],
        tests: vec![workspace::build_with_tests(&["slab"])?.get("slab")?],
        test_arguments: vec![tests.to_owned()],
        ..call.clone()
    }))
}

/// What a machine gets: type information of another kernel, and the module where it was built.
fn files(line: &Line, cgroup: Cgroup) -> Result<Vec<String>> {
    let other = if line.to_string().starts_with("5.10") {
        "6.1"
    } else {
        "5.10"
    };
    let other: Line = other.parse().map_err(anyhow::Error::msg)?;
    let mut files = Vec::new();
    if module::on_mirror(&other)? {
        let types = module::type_information(&other)?;
        files.push(format!("{}:/foreign.btf", types.display()));
    }
    if (line.to_string().as_str(), cgroup.name()) == MODULE_FOR {
        let module = module::build(line)?;
        files.push(format!("{}:/{}.ko", module.display(), module::NAME));
    }
    Ok(files)
}

/// The plan that the machine left against the one checked in.
fn compare(line: &Line, cgroup: Cgroup, update: bool) -> Result<Tally> {
    let label = format!("{line}-{}", cgroup.name());
    let brought = module::folder().join(format!("out-{label}/plan.json"));
    let kept = workspace::root().join(format!("kmem-trace/tests/plans/{label}.json"));
    let test = match fs::read_to_string(&brought) {
        Err(_) => Test::failed("plan-as-checked-in", "the machine left no plan"),
        Ok(now) if update => {
            write(&kept, &now)?;
            Test::passed("plan-as-checked-in")
        }
        Ok(now) => match fs::read_to_string(&kept) {
            Ok(before) if before == now => Test::passed("plan-as-checked-in"),
            Ok(before) => Test::failed("plan-as-checked-in", first_difference(&before, &now)),
            Err(_) => Test::failed(
                "plan-as-checked-in",
                format!("there is no {}: run with --update", kept.display()),
            ),
        },
    };
    println!(
        "test {line}/{}/{} ... {}",
        cgroup.name(),
        test.name,
        test.verdict
    );
    if test.verdict != Verdict::Passed {
        println!("    {}", test.detail);
    }
    Ok(Tally::of(&[test]))
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Where two plans part.
fn first_difference(before: &str, now: &str) -> String {
    let mut before = before.lines();
    for (number, line) in now.lines().enumerate() {
        let old = before.next().unwrap_or("nothing");
        if old != line {
            return format!(
                "line {}: checked in is {}, now it is {}; if that is right, run with --update",
                number + 1,
                old.trim(),
                line.trim()
            );
        }
    }
    format!(
        "checked in is more: {}",
        before.next().unwrap_or_default().trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_matrix_is_one() {
        for (lines, _) in MATRIX {
            assert!(!lines.is_empty());
            assert!(
                lines.iter().all(|line| line.parse::<Line>().is_ok()),
                "{lines:?}"
            );
        }
    }

    #[test]
    fn what_takes_long_is_for_those_who_ask_for_all_or_for_it() {
        let wanted = |all, targets: &[&str]| {
            Arguments {
                all,
                update: false,
                kernels: Vec::new(),
                targets: targets.iter().map(|it| (*it).to_owned()).collect(),
                jobs: 1,
                refresh: false,
            }
            .wanted()
        };
        assert_eq!(wanted(false, &[]), TARGETS);
        assert_eq!(wanted(true, &[]).last().unwrap(), "slab");
        assert_eq!(wanted(false, &["slab"]), ["slab"]);
        assert_eq!(wanted(true, &["plan"]), ["plan"]);
    }

    #[test]
    fn plans_that_part_are_told_apart_by_their_first_line() {
        assert!(first_difference("a\nb", "a\nc").contains("line 2"));
        assert!(first_difference("a", "a\nc").contains("now it is c"));
        assert!(first_difference("a\nb", "a").contains("more: b"));
    }
}
