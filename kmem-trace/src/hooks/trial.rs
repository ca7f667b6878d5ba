//! Whether the kernel takes programs on functions at all: tried before anything is attached, for what
//! is attached takes long to let go of, and a plan without them starts over.
//!
//! Only loading is tried. What a kernel loads and then does not let onto its function
//! ([`Refused::closed`]) is found when it is attached.

use aya::{
    Btf, Ebpf,
    programs::{FEntry, ProgramError},
};

use super::{
    attach::{Refused, refusal},
    plan::Resolved,
};

/// Does nothing, so that a refusal is none of its own fault.
const PROGRAM: &str = "fe_nothing";
/// Functions that are tried: of one, a refusal may be the function's own fault.
const TRIED: usize = 2;

/// What the kernel refused where it took no program on any of the functions tried; empty where it
/// took one, or where the plan has too few functions to tell.
pub(super) fn refused(ebpf: &mut Ebpf, wanted: &[&Resolved], btf: Option<&Btf>) -> Vec<Refused> {
    let Some(btf) = btf else {
        return Vec::new();
    };
    let mut all: Vec<Refused> = Vec::new();
    for resolved in wanted {
        let Some(choice) = resolved.choice else {
            continue;
        };
        for hook in choice.1.hooks {
            if !hook.is_on_function() || all.iter().any(|tried| tried.hook.symbol == hook.symbol) {
                continue;
            }
            let Err(error) = load(ebpf, hook.symbol, btf) else {
                return Vec::new();
            };
            let why = refusal(&error);
            all.push(Refused::new(resolved.role.name, choice, hook, &why, false));
            if all.len() == TRIED {
                return all;
            }
        }
    }
    Vec::new()
}

/// Loads the program for a function, and lets go of it again.
fn load(ebpf: &mut Ebpf, symbol: &str, btf: &Btf) -> Result<(), ProgramError> {
    let Some(program) = ebpf.program_mut(PROGRAM) else {
        // The object for old kernels has no programs on functions.
        return Ok(());
    };
    let program: &mut FEntry = program.try_into()?;
    program.load(symbol, btf)?;
    program.unload()
}
