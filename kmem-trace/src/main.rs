//! Arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser as _;
use kmem_trace::command::{
    cli::{Cli, Command},
    demo, doctor, enable, explain, run,
    trace::{self, Outcome},
};
use kmem_trace::workload::worker;

/// Could not do it.
const FAILED: u8 = 1;
/// Traced, but a residual exceeded its bound.
const BEYOND: u8 = 3;

fn main() -> ExitCode {
    if worker::is_worker_invocation() {
        return worker::main();
    }
    let cli = Cli::parse();
    let verbose = match &cli.command {
        Some(Command::Run(args)) => args.common.verbose,
        Some(Command::Demo(args)) => args.common.verbose,
        Some(Command::Doctor(_) | Command::Explain(_) | Command::Enable(_)) => 0,
        None => cli.trace.common.verbose,
    };
    log_to_stderr(verbose);
    match go(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kmem-trace: {}", one_line(&error));
            ExitCode::from(FAILED)
        }
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

/// What, and why, in one line.
fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").replace('\n', " ")
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
        .format_timestamp(None)
        .format_target(false)
        .parse_env("KMEM_TRACE_LOG")
        .init();
}
