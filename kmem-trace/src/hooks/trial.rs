//! Whether the kernel takes programs on functions at all: tried before anything is attached, for what
//! is attached takes long to let go of, and a plan without them starts over.

use aya::{
    Btf, Ebpf,
    programs::{FEntry, FExit, ProgramError},
};

use super::{
    attach::{Refused, refusal},
    plan::Resolved,
    table::{Hook, Place},
};

/// Functions that are tried: of one, a refusal may be its own fault.
const TRIED: usize = 2;

/// What the kernel refused where it took no program on any function; empty where it took one.
pub(super) fn refused(ebpf: &mut Ebpf, wanted: &[&Resolved], btf: Option<&Btf>) -> Vec<Refused> {
    let Some(btf) = btf else {
        return Vec::new();
    };
    let mut all: Vec<Refused> = Vec::new();
    for resolved in wanted {
        let Some((candidate, chosen)) = resolved.choice else {
            continue;
        };
        for hook in chosen.hooks {
            if all.iter().any(|tried| tried.hook.symbol == hook.symbol) {
                continue;
            }
            let why = match load(ebpf, hook, btf) {
                None => continue,
                Some(Ok(())) => return Vec::new(),
                Some(Err(error)) => refusal(&error),
            };
            all.push(Refused {
                role: resolved.role.name,
                candidate,
                why: format!(
                    "{} refused on {}: {why}",
                    chosen.mechanism.name(),
                    hook.symbol
                ),
                hook: *hook,
                closed: false,
            });
            if all.len() == TRIED {
                return all;
            }
        }
    }
    Vec::new()
}

/// `None` where a hook is on no function.
fn load(ebpf: &mut Ebpf, hook: &Hook, btf: &Btf) -> Option<Result<(), ProgramError>> {
    let program = ebpf.program_mut(hook.program)?;
    match hook.place {
        Place::Fentry => {
            let program: Result<&mut FEntry, _> = program.try_into();
            Some(program.and_then(|program| {
                program.load(hook.symbol, btf)?;
                program.unload()
            }))
        }
        Place::Fexit => {
            let program: Result<&mut FExit, _> = program.try_into();
            Some(program.and_then(|program| {
                program.load(hook.symbol, btf)?;
                program.unload()
            }))
        }
        _ => None,
    }
}
