//! Programs handed to the kernel, which verifies them: most of what a start takes, and done by several
//! threads, as the kernel lets whoever is privileged (`bpf_check` locks only the others out).

use std::{
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Btf, Ebpf,
    programs::{Program, ProgramError},
};

use super::{allowed::cause, table::Hook};

/// More threads gain little: the largest program alone takes a tenth of all.
const MOST_THREADS: usize = 4;

/// Loads the programs of some hooks. Where the kernel refuses one it stays as it is: whoever attaches
/// it hears why.
pub fn all(ebpf: &mut Ebpf, hooks: &[Hook], btf: Option<&Btf>) {
    let waiting: Vec<(&mut Program, &Hook)> = ebpf
        .programs_mut()
        .filter_map(|(name, program)| {
            let hook = hooks.iter().find(|hook| hook.program == name)?;
            Some((program, hook))
        })
        .collect();
    let waiting = Mutex::new(waiting);
    let next = || {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.pop()
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads.min(MOST_THREADS) {
            scope.spawn(|| {
                while let Some((program, hook)) = next() {
                    if let Err(error) = one(program, hook, btf) {
                        log::debug!("{}: {error}", hook.program);
                    }
                }
            });
        }
    });
}

/// Loads a hook's program, unless it is.
///
/// # Errors
/// What the kernel said, in one line.
pub fn one(program: &mut Program, hook: &Hook, btf: Option<&Btf>) -> Result<()> {
    if program.fd().is_ok() {
        return Ok(());
    }
    let btf = || btf.context("no type information");
    match program {
        Program::KProbe(program) => program.load(),
        Program::TracePoint(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        Program::FEntry(program) => program.load(hook.symbol, btf()?),
        Program::FExit(program) => program.load(hook.symbol, btf()?),
        Program::BtfTracePoint(program) => program.load(hook.symbol, btf()?),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
    .map_err(|error| anyhow!(refusal(&error)))
}

/// What the kernel said, in one line; the verifier's log, where there is one, by its last words.
pub fn refusal(error: &ProgramError) -> String {
    if let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    {
        log::debug!("verifier: {verifier_log}");
        let text = verifier_log.to_string();
        let last = text
            .lines()
            .rev()
            .find(|line| !line.is_empty() && !line.starts_with("processed"));
        return match last {
            Some(line) => format!("{io_error} ({line})"),
            None => io_error.to_string(),
        };
    }
    cause(error)
}
