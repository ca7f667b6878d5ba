//! Arguments in, exit code out.

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use kmem_trace::command::{
    cli::{Cli, Command},
    demo, doctor, enable, explain, run,
    trace::{self, Outcome},
    wrong_use,
};
use kmem_trace::view::name;
use kmem_trace::workload::worker;

/// Could not do it.
const FAILED: u8 = 1;
/// Asked in a way that is not understood.
const WRONG_USE: u8 = 2;
/// Traced, but a residual exceeded its bound.
const BEYOND: u8 = 3;

fn main() -> ExitCode {
    if worker::is_worker_invocation() {
        return worker::main();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            let first = std::env::args_os().nth(1);
            complain(&wrong_use::line(&error, first.as_deref()));
            return ExitCode::from(WRONG_USE);
        }
        Err(help_or_version) => return print(&help_or_version),
    };
    let verbose = match &cli.command {
        Some(Command::Run(args)) => args.common.verbose,
        Some(Command::Demo(args)) => args.common.verbose,
        Some(Command::Doctor(_) | Command::Explain(_) | Command::Enable(_)) => 0,
        None => cli.trace.common.verbose,
    };
    log_to_stderr(verbose);
    match go(cli) {
        Ok(code) => code,
        // The reader has seen enough (`| head`).
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::from(FAILED)
        }
    }
}

/// What `--help` and `--version` ask for.
fn print(text: &clap::Error) -> ExitCode {
    match text.print().and_then(|()| std::io::stdout().flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            complain(&format!("cannot write the output: {error}"));
            ExitCode::from(FAILED)
        }
        _ => ExitCode::SUCCESS,
    }
}

fn go(cli: Cli) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match cli.command {
        None => Ok(code_of(runtime.block_on(trace::main(cli.trace))?)),
        Some(Command::Run(args)) => {
            let ended = runtime.block_on(run::main(args))?;
            Ok(match (ended.code(), ended.outcome) {
                (0, outcome) => code_of(outcome),
                (code, _) => ExitCode::from(code),
            })
        }
        Some(Command::Demo(args)) => Ok(code_of(runtime.block_on(demo::main(args))?)),
        Some(Command::Doctor(args)) => {
            doctor::main(&args)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Explain(args)) => {
            explain::main(&args)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Enable(args)) => {
            enable::main(&args)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn code_of(outcome: Outcome) -> ExitCode {
    match outcome {
        Outcome::Explained => ExitCode::SUCCESS,
        Outcome::Beyond => ExitCode::from(BEYOND),
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// What, why and what next, in one line; where nobody can read it any more, it is lost.
fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "kmem-trace: {}", name::one_line(message));
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Info,
        _ => log::LevelFilter::Debug,
    };
    env_logger::Builder::new()
        .filter_level(level)
        // The loader's own debug output is longer than a verifier's log.
        .filter_module("aya", level.min(log::LevelFilter::Info))
        .filter_module("aya_obj", level.min(log::LevelFilter::Info))
        // Names in messages are as hostile as anywhere.
        .format(|out, record| {
            let level = record.level().as_str().to_lowercase();
            let message = name::one_line(&record.args().to_string());
            writeln!(out, "kmem-trace: {level}: {message}")
        })
        .parse_env("KMEM_TRACE_LOG")
        .init();
}
