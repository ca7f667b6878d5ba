//! Arguments.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    hooks::{features::Feature, plan::AttachMode, table::ROLES},
    view::event,
};

/// Why a container's memory usage and its node disagree: live charges of a memory cgroup,
/// reconciled against the kernel's own figure.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Cli {
    #[command(flatten)]
    pub trace: TraceArgs,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a cgroup, made for it or there before, trace until it ends, pass its exit code on.
    ///
    /// The command goes with the trace: --duration and Ctrl-C stop it and all that it started in a
    /// cgroup made for it, by SIGTERM, and 5 s later by SIGKILL; the exit code is then 128 + the signal.
    Run(RunArgs),
    /// The built-in experiment: groups of loopback TCP connections in cgroups of their own, traced.
    Demo(DemoArgs),
    /// What this kernel allows: role by role, exact, bounded or missing, and why.
    Doctor(DoctorArgs),
    /// Which figures of this kernel add up to a cgroup's usage. No BPF, no root needed.
    Explain(ExplainArgs),
    /// Switch a v1 cgroup's kernel memory accounting on, without limiting it.
    Enable(EnableArgs),
}

/// `--format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    /// JSON Lines: one object a line, "type" first.
    Json,
}

#[derive(Clone, Debug, Args)]
pub struct TraceArgs {
    /// Trace the subtree of this cgroup: a path under the memory hierarchy ("test-docker-memory",
    /// "/docker/3f2a"), a directory, or 4 or more characters of its name that no other has.
    #[arg(
        short,
        long = "cgroup",
        value_name = "CGROUP",
        required_unless_present = "pid"
    )]
    pub cgroups: Vec<String>,
    /// Trace the memory cgroup of this process.
    #[arg(short, long, allow_hyphen_values = true, value_parser = pid)]
    pub pid: Option<u32>,
    #[command(flatten)]
    pub common: Common,
}

/// What `trace` and `run` share.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Time between reports ("1s", "500ms").
    #[arg(short, long, default_value = "1s", allow_hyphen_values = true, value_parser = duration)]
    pub interval: Duration,
    /// Stop after this time; without it, Ctrl-C ends the trace.
    #[arg(short, long, allow_hyphen_values = true, value_parser = duration)]
    pub duration: Option<Duration>,
    /// Print each event instead of the periodic report: of all roles but those that cost most, or of
    /// the ones named, with commas between them.
    #[arg(long, long_help = events_help(), value_name = "ROLE", value_delimiter = ',', num_args = 0..=1, default_missing_value = "", value_parser = role)]
    pub events: Option<Vec<String>>,
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Write reports, events and JSON to a file, apart from what a command under `run` prints.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The mechanism for all roles; refused where the kernel does not allow it.
    #[arg(long, value_enum, default_value_t)]
    pub attach: AttachMode,
    /// Type information for a kernel that has none of its own; must be of this very kernel.
    #[arg(long, value_name = "FILE")]
    pub btf: Option<PathBuf>,
    /// Report on this many levels below each traced cgroup too.
    #[arg(long, value_name = "LEVELS", default_value_t = 0, allow_hyphen_values = true, value_parser = depth)]
    pub depth: u32,
    /// Size of the ring buffer in KiB, rounded up to a power of two; from 16 CPUs on it is shared by
    /// two rings, from 32 on by four. Kernels before 5.8 have perf buffers instead, one a CPU, which
    /// share it.
    #[arg(long, value_name = "KIB", default_value_t = 1024, allow_hyphen_values = true, value_parser = ring)]
    pub ring: u32,
    /// Cgroups that the kernel-side totals have room for.
    #[arg(long, value_name = "N", default_value_t = 16384, allow_hyphen_values = true, value_parser = max_cgroups)]
    pub max_cgroups: u32,
    /// Leave slab objects alone: the ledger only, at less cost.
    #[arg(long)]
    pub no_slab: bool,
    /// Slab objects without a payer that can be remembered at a time, at about 100 bytes of kernel
    /// memory each. Without it 262144; demo takes what its load needs.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=67_108_864))]
    pub max_objects: Option<u32>,
    /// Write the streamed records to a file.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Have the kernel measure the BPF programs' run time and show it. Costs some 30 ns a run, of
    /// all programs on the machine, until the trace ends, and takes CAP_SYS_ADMIN.
    #[arg(long)]
    pub bpf_stats: bool,
    /// Most that tracing may cost, in percent of the CPU time of all online CPUs together (BPF
    /// programs and this process). Above it, half a second long, less is followed, step by step
    /// and each one announced: single events, call sites of slab, slab. Has the kernel measure the
    /// programs, as --bpf-stats does, until no step is left, and takes CAP_SYS_ADMIN.
    #[arg(long, value_name = "PCT", allow_hyphen_values = true, value_parser = percent)]
    pub max_overhead: Option<f64>,
    /// Say more; twice: the BPF programs' log too.
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Strike candidates out of the hook table ("role:index"), to test what comes after them.
    #[arg(long, hide = true, value_delimiter = ',')]
    pub strike: Vec<String>,
    /// Rings for the records, to test what many CPUs get.
    #[arg(long, hide = true, value_parser = rings)]
    pub rings: Option<u32>,
    /// Sums of slab that the programs have room for, to test what happens where that runs out: as if
    /// this process could not take any over.
    #[arg(long, hide = true, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub rows: Option<u32>,
    /// Begin the figures this long after attaching: tests empty meanwhile what loading left on
    /// per-CPU lists.
    #[arg(long, hide = true, default_value = "20ms", value_parser = duration)]
    pub settle: Duration,
    /// Do without what an old kernel lacks, to test what comes in its place.
    #[arg(long, hide = true, value_delimiter = ',')]
    pub forbid: Vec<Feature>,
}

#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The cgroup to run it in, below the memory hierarchy's root. One that is not there is made, and
    /// removed again afterwards; one that is, is used and kept. Without it a name is made up.
    #[arg(short, long = "cgroup", value_name = "NAME")]
    pub cgroup: Option<String>,
    #[command(flatten)]
    pub common: Common,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// How many groups, each a cgroup with a network namespace, servers and clients.
    #[arg(long, value_name = "N", default_value_t = 4, allow_hyphen_values = true, value_parser = groups)]
    pub groups: u32,
    /// TCP connections of each group.
    #[arg(long, value_name = "M", default_value_t = 2000, allow_hyphen_values = true, value_parser = connections)]
    pub connections: u64,
    /// The cgroup above the groups. One that is not there is made, and removed again afterwards; one
    /// that is, is used and kept.
    #[arg(
        short,
        long = "cgroup",
        value_name = "NAME",
        default_value = "test-docker-memory"
    )]
    pub cgroup: String,
    /// Leave the load standing until Ctrl-C.
    #[arg(long)]
    pub keep: bool,
    /// The bare load, untraced (to compare with).
    #[arg(long)]
    pub no_trace: bool,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// The mechanism for all roles, as in a trace.
    #[arg(long, value_enum, default_value_t)]
    pub attach: AttachMode,
    /// Type information for a kernel that has none of its own.
    #[arg(long, value_name = "FILE")]
    pub btf: Option<PathBuf>,
    /// Strike candidates out of the hook table ("role:index").
    #[arg(long, hide = true, value_delimiter = ',')]
    pub strike: Vec<String>,
    /// Do without what an old kernel lacks.
    #[arg(long, hide = true, value_delimiter = ',')]
    pub forbid: Vec<Feature>,
}

#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// The cgroup, named as for a trace; without it, the one this process is in.
    #[arg(short, long, value_name = "CGROUP")]
    pub cgroup: Option<String>,
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Type information for a kernel that has none of its own.
    #[arg(long, value_name = "FILE")]
    pub btf: Option<PathBuf>,
    /// Do without what an old kernel lacks.
    #[arg(long, hide = true, value_delimiter = ',')]
    pub forbid: Vec<Feature>,
}

#[derive(Clone, Debug, Args)]
pub struct EnableArgs {
    /// The cgroup, named as for a trace.
    #[arg(short, long, value_name = "CGROUP")]
    pub cgroup: String,
    /// Type information for a kernel that has none of its own.
    #[arg(long, value_name = "FILE")]
    pub btf: Option<PathBuf>,
}

/// The help of `--events`, with the roles that have events of their own.
fn events_help() -> String {
    let mut help =
        "Print each event instead of the periodic report: of all roles but those with a star, which cost \
        most, or of the ones named, with commas between them (--events slab.alloc,slab.free):"
            .to_owned();
    for role in ROLES.iter().filter(|role| event::has_own(role.name)) {
        let star = if role.on_request { " *" } else { "" };
        help += &format!(
            "\n  {:<18} {}",
            format!("{}{star}", role.name),
            role.purpose
        );
    }
    help + "\nRoles that this kernel does not give are refused; `kmem-trace doctor` shows what it gives"
}

fn pid(text: &str) -> Result<u32, String> {
    whole(text, 1, i32::MAX.cast_unsigned().into(), "a process id")
}

fn depth(text: &str) -> Result<u32, String> {
    whole(text, 0, u32::MAX.into(), "a number of levels")
}

fn ring(text: &str) -> Result<u32, String> {
    whole(text, 1, 1 << 20, "a size in KiB")
}

fn rings(text: &str) -> Result<u32, String> {
    match text {
        "1" => Ok(1),
        "2" => Ok(2),
        "4" => Ok(4),
        _ => Err("not 1, 2 or 4".to_owned()),
    }
}

fn max_cgroups(text: &str) -> Result<u32, String> {
    whole(text, 1, 1 << 22, "a number of cgroups")
}

fn groups(text: &str) -> Result<u32, String> {
    whole(text, 1, 1000, "a number of groups")
}

fn connections(text: &str) -> Result<u64, String> {
    whole(text, 1, 10_000_000, "a number of connections")
}

/// A whole number from `least` to `most`.
fn whole<T: TryFrom<u64>>(text: &str, least: u64, most: u64, what: &str) -> Result<T, String> {
    let value: Option<u64> = text.parse().ok();
    value
        .filter(|value| (least..=most).contains(value))
        .and_then(|value| T::try_from(value).ok())
        .ok_or_else(|| format!("not {what} from {least} to {most}"))
}

fn percent(text: &str) -> Result<f64, String> {
    let value: Option<f64> = text.trim_end_matches('%').parse().ok();
    value
        .filter(|value| *value > 0.0 && *value <= 100.0)
        .ok_or_else(|| {
            "not a share above 0 and up to 100, in percent: write for example 1.5".to_owned()
        })
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text)
        .map_err(|_| "not a time: write for example 500ms, 10s or 2m".to_owned())?;
    if parsed < Duration::from_millis(10) {
        return Err("less than 10ms cannot be kept: use 10ms or more".to_owned());
    }
    Ok(parsed)
}

fn role(text: &str) -> Result<String, String> {
    if text.is_empty() || ROLES.iter().any(|role| role.name == text) {
        return Ok(text.to_owned());
    }
    let names: Vec<_> = ROLES.iter().map(|role| role.name).collect();
    Err(format!("no such role; there are {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_of_events_names_each_role_that_has_some() {
        let help = events_help();
        let line = |role: &str| help.lines().find(|line| line.trim().starts_with(role));
        let has_star = |role: &str| line(role).map(|line| line.contains(" * "));
        assert_eq!(has_star("counter.charge"), Some(false));
        assert_eq!(has_star("memcg.state"), Some(true));
        assert_eq!(has_star("slab.free"), Some(true));
        // It fires no event of its own.
        assert_eq!(line("slab.socket"), None);
    }

    #[test]
    fn events_take_a_list_or_nothing() {
        let parse =
            |words: &[&str]| Cli::try_parse_from([&["kmem-trace", "-c", "x"], words].concat());
        let events = |words: &[&str]| parse(words).map(|cli| cli.trace.common.events);
        assert_eq!(events(&[]).ok(), Some(None));
        assert_eq!(events(&["--events"]).ok(), Some(Some(vec![String::new()])));
        assert_eq!(
            events(&["--events", "counter.charge,limit.write"]).ok(),
            Some(Some(vec![
                "counter.charge".to_owned(),
                "limit.write".to_owned()
            ]))
        );
        assert!(events(&["--events", "nonsense"]).is_err());
    }
}
