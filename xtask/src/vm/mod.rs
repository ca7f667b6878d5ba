//! `cargo xtask vm`: boots Debian kernels in QEMU and runs the kernel tests, or a command, there.
//!
//! Results lie below `target/vm`: `report-NAME.txt`, `serial-NAME.log` (the kernel's console),
//! `results-NAME.log` (what the tests printed) and `out-NAME/` (what they left in `/out`).

mod apt;
mod cpio;
mod initramfs;
pub mod kernel;
pub mod matrix;
pub mod module;
mod outcome;
pub mod qemu;
mod session;

use std::collections::VecDeque;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use self::initramfs::{Contents, Job};
use self::kernel::{Kernel, Line};
use self::outcome::{Outcome, Talk, death};
use self::qemu::{Accelerator, Machine};
use self::session::{Marker, Piece, Session};
use crate::libtest::{Tally, Test};
use crate::{process, workspace};

#[derive(Args, Clone)]
pub struct Arguments {
    /// Kernel line: 5.10, 6.1, 6.12 ..., newest, with -rt or -cloud for a flavour. Repeatable.
    #[arg(long = "kernel", value_name = "LINE", default_value = "6.12")]
    pub kernels: Vec<Line>,
    /// cgroup version; auto takes v1 where the kernel has it.
    #[arg(long, value_enum, default_value = "auto")]
    pub cgroup: Cgroup,
    /// More for the kernel's command line, such as lockdown=confidentiality. Repeatable.
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub append: Vec<String>,
    /// Memory of the machine.
    #[arg(long, default_value = "2G")]
    pub mem: String,
    /// Processors of the machine.
    #[arg(long, default_value_t = 2)]
    pub cpus: u32,
    /// Seconds from the start of a machine to its forced end.
    #[arg(long, default_value_t = 900)]
    pub timeout: u64,
    /// The kmem-trace to put at /bin/kmem-trace, instead of building it.
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
    /// Test target of kmem-trace to build and run, instead of `kernel`; such as abuse, slab, legacy.
    /// Repeatable.
    #[arg(long = "target", value_name = "NAME", conflicts_with = "tests")]
    pub targets: Vec<String>,
    /// Test programs to run, instead of building any. Repeatable.
    #[arg(long, value_name = "PATH")]
    pub tests: Vec<PathBuf>,
    /// One more argument for each test program, such as a filter. Repeatable.
    #[arg(long = "test-arg", value_name = "WORD", allow_hyphen_values = true)]
    pub test_arguments: Vec<String>,
    /// One more file for the machine, at its own name in / or at INSIDE. Repeatable.
    #[arg(long = "file", value_name = "PATH[:INSIDE]")]
    pub files: Vec<String>,
    /// Leave kmem-trace out: for a command or a shell that does not need it.
    #[arg(long)]
    pub bare: bool,
    /// How many machines run at a time.
    #[arg(long, default_value_t = 1)]
    pub jobs: usize,
    /// Fetch the package lists even if they are fresh.
    #[arg(long)]
    pub refresh: bool,
    /// What tells this machine's files from those of another of the same kernel.
    #[arg(skip)]
    pub apart: Option<&'static str>,
    /// Give a shell on the console instead of running tests.
    #[arg(long, conflicts_with = "command")]
    pub shell: bool,
    /// Run this instead of tests, pass its output through and its exit code on.
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
}

impl Default for Arguments {
    /// As with no argument at all.
    fn default() -> Self {
        #[derive(clap::Parser)]
        struct Alone {
            #[command(flatten)]
            arguments: Arguments,
        }
        <Alone as clap::Parser>::parse_from(["vm"]).arguments
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Cgroup {
    Auto,
    V1,
    V2,
}

impl Cgroup {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.shell || !arguments.command.is_empty() {
        return one_after_the_other(arguments);
    }
    let tally = run_tests(std::slice::from_ref(arguments), arguments.jobs)?;
    println!("{tally}");
    Ok(if tally.failed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Where this machine's apt gets Debian from.
pub fn mirror_address() -> Result<String> {
    Ok(apt::Mirror::of_this_machine()?.debian)
}

/// Runs the tests on all kernels of all `sets`, `jobs` at a time; prints and writes the reports,
/// and counts.
pub fn run_tests(sets: &[Arguments], jobs: usize) -> Result<Tally> {
    let benches: Vec<_> = sets.iter().map(Bench::prepare).collect::<Result<_>>()?;
    let queue: VecDeque<_> = benches
        .iter()
        .flat_map(|bench| {
            bench
                .arguments
                .kernels
                .iter()
                .map(move |line| (bench, line))
        })
        .collect();
    let jobs = jobs.clamp(1, queue.len().max(1));
    let queue = Mutex::new(queue);
    let total = Mutex::new(Tally::default());
    let next = || lock(&queue).pop_front();
    let work = || -> Result<()> {
        while let Some((bench, line)) = next() {
            let outcome = match bench.kernel(line) {
                Ok(Some(kernel)) => bench.test(line, &kernel)?,
                Ok(None) => Outcome::without_machine(Test::skipped(
                    "boot",
                    format!("SKIPPED: there is no {line} kernel on this machine's mirror"),
                )),
                Err(error) => Outcome::without_machine(Test::failed("boot", format!("{error:#}"))),
            };
            let report = outcome.report(&bench.label(line));
            // Printing is for one at a time.
            let mut total = lock(&total);
            print!("{report}");
            fs::write(bench.path("report", line, ".txt"), report)?;
            *total += Tally::of(&outcome.tests);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| bail!("a worker thread panicked"))
        })
    })?;
    let total = *lock(&total);
    Ok(total)
}

/// The command or the shell, on each kernel in turn; the exit code is the first that is not 0.
fn one_after_the_other(arguments: &Arguments) -> Result<ExitCode> {
    let bench = Bench::prepare(arguments)?;
    let mut exit = 0;
    for line in &arguments.kernels {
        let Some(kernel) = bench.kernel(line)? else {
            bail!("there is no {line} kernel on this machine's mirror");
        };
        let code = bench.command(line, &kernel)?;
        if exit == 0 {
            exit = code;
        }
    }
    Ok(ExitCode::from(u8::try_from(exit).unwrap_or(u8::MAX)))
}

/// Runs the command on the first kernel: its exit code, and the folder with what it left in `/out`.
pub fn run_command(arguments: &Arguments) -> Result<(i32, PathBuf)> {
    let bench = Bench::prepare(arguments)?;
    let line = arguments.kernels.first().context("no kernel named")?;
    let Some(kernel) = bench.kernel(line)? else {
        bail!("there is no {line} kernel on this machine's mirror");
    };
    let code = bench.command(line, &kernel)?;
    Ok((code, bench.path("out", line, "")))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all machines of one call have in common.
struct Bench<'a> {
    arguments: &'a Arguments,
    folder: PathBuf,
    mirror: apt::Mirror,
    accelerator: Accelerator,
    job: Job,
    binary: Option<PathBuf>,
    files: Vec<(PathBuf, String)>,
}

impl<'a> Bench<'a> {
    fn prepare(arguments: &'a Arguments) -> Result<Self> {
        qemu::check()?;
        let folder = workspace::target().join("vm");
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let mut binary = arguments.binary.clone();
        let job = if arguments.shell {
            Job::Shell
        } else if arguments.command.is_empty() {
            let mut programs = arguments.tests.clone();
            if programs.is_empty() {
                let mut names: Vec<&str> = arguments.targets.iter().map(String::as_str).collect();
                if names.is_empty() {
                    names.push("kernel");
                }
                let built = workspace::build_with_tests(&names)?;
                for name in names {
                    programs.push(built.get(name)?);
                }
                binary = binary.or(built.get("kmem-trace").ok());
            }
            let named = |path: PathBuf| (workspace::stem(&path), path);
            Job::Tests(
                programs.into_iter().map(named).collect(),
                arguments.test_arguments.clone(),
            )
        } else {
            Job::Command(arguments.command.clone())
        };
        let binary = match binary {
            _ if arguments.bare => None,
            Some(binary) => Some(binary),
            None => Some(build_binary()?),
        };
        Ok(Self {
            arguments,
            folder,
            mirror: apt::Mirror::of_this_machine()?,
            accelerator: Accelerator::available(),
            job,
            binary,
            files: arguments.files.iter().map(|text| inside(text)).collect(),
        })
    }

    fn kernel(&self, line: &Line) -> Result<Option<Kernel>> {
        kernel::obtain(line, &self.mirror, &self.folder, self.arguments.refresh)
    }

    /// The kernel as reports call it: the same line with another command line is another one.
    fn label(&self, line: &Line) -> String {
        let mut label = line.to_string();
        for words in &self.arguments.append {
            label.push('+');
            label.push_str(&words.replace(char::is_whitespace, "+"));
        }
        label
    }

    /// A file of this kernel's below `target/vm`.
    fn path(&self, stem: &str, line: &Line, extension: &str) -> PathBuf {
        let mut label = self.label(line).replace('/', "_");
        if !matches!(self.arguments.cgroup, Cgroup::Auto) {
            label = format!("{label}-{}", self.arguments.cgroup.name());
        }
        if let Some(apart) = self.arguments.apart {
            label = format!("{label}-{apart}");
        }
        self.folder.join(format!("{stem}-{label}{extension}"))
    }

    /// Boots `kernel` and hands each piece of its result line on. `Err` inside: why it was cut.
    fn boot(
        &self,
        line: &Line,
        kernel: &Kernel,
        mut receive: impl FnMut(Piece),
    ) -> Result<Result<(), String>> {
        let token = token();
        let archive = initramfs::build(&Contents {
            job: &self.job,
            binary: self.binary.as_deref(),
            files: &self.files,
            cgroup: self.arguments.cgroup.name(),
            token: &token,
        })?;
        let initramfs = self.path("initramfs", line, ".cpio");
        let console = self.path("serial", line, ".log");
        let out = self.path("out", line, ".tar.gz");
        fs::write(&initramfs, archive)
            .with_context(|| format!("cannot write {}", initramfs.display()))?;
        let machine = Machine {
            kernel: &kernel.image,
            initramfs: &initramfs,
            append: &self.arguments.append,
            memory: &self.arguments.mem,
            cpus: self.arguments.cpus,
            accelerator: self.accelerator,
            console: &console,
            out: &out,
        };
        if matches!(self.job, Job::Shell) {
            machine.run_interactively()?;
            return Ok(Ok(()));
        }
        let mut raw = fs::File::create(self.path("results", line, ".log"))?;
        let mut session = Session::new(&token);
        let mut written = Ok(());
        let timeout = Duration::from_secs(self.arguments.timeout);
        let ended = machine.run(timeout, |bytes| {
            written = std::mem::replace(&mut written, Ok(())).and_then(|()| raw.write_all(bytes));
            for piece in session.push(bytes) {
                receive(piece);
            }
        })?;
        written.context("cannot write the results' log")?;
        receive(Piece::Output(session.finish()));
        fs::remove_file(&initramfs)?;
        bring_out(&out, &self.path("out", line, ""))?;
        if ended {
            return Ok(Ok(()));
        }
        Ok(Err(format!(
            "the machine was still running after {} s",
            self.arguments.timeout
        )))
    }

    fn command(&self, line: &Line, kernel: &Kernel) -> Result<i32> {
        let mut code = None;
        let mut refused = None;
        let mut running = false;
        let mut stdout = std::io::stdout().lock();
        let mut printed = Ok(());
        let ended = self.boot(line, kernel, |piece| match piece {
            Piece::Output(bytes) if running => {
                printed = stdout.write_all(&bytes).and_then(|()| stdout.flush());
            }
            // Before and after the command only the machine's own set-up could speak.
            Piece::Output(_) => {}
            Piece::Marker(Marker::Begin(_)) => running = true,
            Piece::Marker(Marker::End(exit)) => {
                running = false;
                code = Some(exit);
            }
            Piece::Marker(Marker::Refused(why)) => refused = Some(why),
            Piece::Marker(Marker::Ready { .. }) => {}
        })?;
        if matches!(self.job, Job::Shell) {
            return Ok(0);
        }
        printed.context("cannot print")?;
        let console = self.path("serial", line, ".log");
        match (code, refused, ended) {
            (_, Some(why), _) => bail!("{line}: {why}"),
            (Some(code), None, Ok(())) => Ok(code),
            (_, None, Err(why)) => bail!("{line}: {why}, see {}", console.display()),
            (None, None, Ok(())) => bail!("{line}: {}, see {}", death(&console), console.display()),
        }
    }

    fn test(&self, line: &Line, kernel: &Kernel) -> Result<Outcome> {
        eprintln!(
            "booting {} ({} {})",
            self.label(line),
            kernel.package,
            kernel.version
        );
        let start = Instant::now();
        let mut talk = Talk::default();
        let ended = self.boot(line, kernel, |piece| talk.hear(piece, start));
        let console = self.path("serial", line, ".log");
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => Err(format!("{error:#}")),
        };
        let expected = match &self.job {
            Job::Tests(tests, _) => tests.as_slice(),
            Job::Command(_) | Job::Shell => &[],
        };
        let mut outcome = talk.outcome(expected, ended.err(), || death(&console));
        outcome
            .notes
            .insert(0, format!("{} {}", kernel.package, kernel.version));
        for complaint in qemu::complaints(&console) {
            outcome.notes.push(format!("the kernel says: {complaint}"));
        }
        outcome.notes.push(format!(
            "{:.1} s in all, console in {}",
            start.elapsed().as_secs_f64(),
            console.display()
        ));
        Ok(outcome)
    }
}

/// Unpacks what the machine left in `/out`, in place of what an earlier one left.
fn bring_out(archive: &Path, folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    if fs::metadata(archive).is_ok_and(|metadata| metadata.len() > 0) {
        fs::create_dir_all(folder)?;
        process::run(
            Command::new("tar")
                .arg("-xzf")
                .arg(archive)
                .arg("-C")
                .arg(folder),
        )
        .context("the machine's /out did not come out whole")?;
    }
    if archive.exists() {
        fs::remove_file(archive)?;
    }
    Ok(())
}

/// Marker lines begin with it. Nobody must guess it, a test only must not print it by accident.
fn token() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos());
    format!("@@vm-{now:x}-{}", std::process::id())
}

pub fn build_binary() -> Result<PathBuf> {
    workspace::build_executables(&["build", "--release", "--package", "kmem-trace"])?
        .into_iter()
        .find(|path| path.ends_with("kmem-trace"))
        .context("cargo built no kmem-trace")
}

/// Splits `PATH[:INSIDE]`.
fn inside(text: &str) -> (PathBuf, String) {
    match text.split_once(':') {
        Some((path, inside)) => (path.into(), inside.to_owned()),
        None => {
            let path = PathBuf::from(text);
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let inside = format!("/{name}");
            (path, inside)
        }
    }
}
