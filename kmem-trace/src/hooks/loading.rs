//! Programs handed to the kernel, which verifies them: most of what a start takes, and done by several
//! threads, as the kernel lets whoever is privileged (`bpf_check` locks only the others out).

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    thread,
};

use aya::{
    Btf, Ebpf,
    programs::{Program, ProgramError},
};

use super::{allowed::cause, table::Hook};

/// A node's other work wants its CPUs too.
const MOST_THREADS: usize = 4;

/// As often as libbpf tries again (`PROG_LOAD_ATTEMPTS`).
const ATTEMPTS: u32 = 5;

/// What the kernel said of the programs that it did not take, in one line each.
pub type Refusals = HashMap<&'static str, String>;

/// Loads the programs of some hooks.
pub fn all(ebpf: &mut Ebpf, hooks: &[Hook], btf: Option<&Btf>) -> Refusals {
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
    let refusals = Mutex::new(Refusals::new());
    let work = || {
        while let Some((program, hook)) = next() {
            if let Err(why) = one(program, hook, btf) {
                let mut refusals = refusals.lock().unwrap_or_else(PoisonError::into_inner);
                refusals.insert(hook.program, why);
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 1..threads.min(MOST_THREADS) {
            // Where there can be no more of them, this one does it all.
            let _ = thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    refusals
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
}

fn one(program: &mut Program, hook: &Hook, btf: Option<&Btf>) -> Result<(), String> {
    let btf = || btf.ok_or_else(|| "no type information".to_owned());
    for _ in 0..ATTEMPTS {
        let loaded = match program {
            Program::KProbe(program) => program.load(),
            Program::TracePoint(program) => program.load(),
            Program::RawTracePoint(program) => program.load(),
            Program::FEntry(program) => program.load(hook.symbol, btf()?),
            Program::FExit(program) => program.load(hook.symbol, btf()?),
            Program::BtfTracePoint(program) => program.load(hook.symbol, btf()?),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        match loaded {
            Err(error) if is_interrupted(&error) => {}
            other => return other.map_err(|error| refusal(&error)),
        }
    }
    Err("interrupted by signals each time".to_owned())
}

/// Whether a signal came meanwhile (`do_check` of the verifier).
fn is_interrupted(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EAGAIN))
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
