//! Where inside a function a kprobe can stand so that no interrupt gets between it and its program.
//!
//! A kprobe on a function's first byte is called by ftrace, and one that the kernel could turn into
//! a jump (`can_optimize`, arch/x86/kernel/kprobes/opt.c) soon is one. Both run with interrupts on,
//! and while one runs the kernel skips every other kprobe program on that CPU
//! (`trace_call_bpf`, `kprobe_ftrace_handler`): what a softirq frees meanwhile is missed. A kprobe
//! that stays a breakpoint runs with interrupts off. So the place to stand is an instruction that
//! the kernel will not turn into a jump, because a branch lies in the five bytes that it would
//! replace or leads into them, and before which the arguments are still in their registers. The way
//! out is seen the same way, by breakpoints on the function's return instructions.
//!
//! x86-64 alone; on others, and where the code cannot be read, there is no such place.

use std::collections::{BTreeSet, HashMap};

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};

use crate::kernel::{symbols::Symbols, text::Kcore};

use super::table::{self, Place};

/// Bytes of the jump that the kernel puts in place of a breakpoint.
const JUMP_BYTES: u64 = 5;
/// No function that is probed is longer; a symbol that claims to be is not read.
const MOST_BYTES: u64 = 1 << 16;

/// Where probes stand in one function; offsets in bytes from its symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sites {
    /// Passed once in each call, with the arguments in place.
    pub entry: u64,
    /// Bytes on the stack there that were not at the function's first instruction.
    pub depth: u32,
    /// The return instructions; why they are not known.
    pub returns: Result<Vec<u64>, String>,
}

/// By function: its sites, or why it has none.
pub type AllSites = HashMap<&'static str, Result<Sites, String>>;

/// What return instructions jump to on processors that must not predict them.
pub const RETURN_THUNKS: &[&str] = &[
    "__x86_return_thunk",
    "call_depth_return_thunk",
    "its_return_thunk",
    "retbleed_return_thunk",
    "srso_alias_return_thunk",
    "srso_return_thunk",
];

/// Looks into every function that the table wants probed inside.
pub fn find_all(symbols: &Symbols) -> AllSites {
    if !cfg!(target_arch = "x86_64") {
        return AllSites::new();
    }
    let mut wanted: Vec<(&'static str, u32)> = Vec::new();
    for hook in table::hooks() {
        if let Place::Inside { arguments } = hook.place
            && symbols.has_function(hook.symbol)
            && !wanted.contains(&(hook.symbol, arguments))
        {
            wanted.push((hook.symbol, arguments));
        }
    }
    if wanted.is_empty() {
        return AllSites::new();
    }
    let kcore = Kcore::open().map_err(|error| error.to_string());
    let thunks: BTreeSet<u64> = RETURN_THUNKS
        .iter()
        .filter_map(|name| symbols.address(name))
        .collect();
    let look = |name: &str, arguments: u32| {
        let function = symbols
            .function(name)
            .filter(|function| function.bytes > 0 && function.bytes <= MOST_BYTES)
            .ok_or_else(|| format!("kallsyms does not say where {name} is"))?;
        let code = kcore
            .as_ref()
            .map_err(String::clone)?
            .read(function.address, function.bytes as usize)
            .map_err(|error| error.to_string())?;
        find(&code, function.address, arguments, &thunks)
    };
    wanted
        .into_iter()
        .map(|(name, arguments)| (name, look(name, arguments)))
        .collect()
}

/// Finds the sites in a function's code, padding behind it included.
///
/// # Errors
/// In a few words, why there is no place for a probe.
pub fn find(
    code: &[u8],
    address: u64,
    arguments: u32,
    thunks: &BTreeSet<u64>,
) -> Result<Sites, String> {
    let end = address
        .checked_add(code.len() as u64)
        .filter(|end| end.checked_add(JUMP_BYTES).is_some())
        .ok_or("its address cannot be")?;
    let all: Vec<Instruction> = Decoder::with_ip(64, code, address, DecoderOptions::NONE)
        .into_iter()
        .collect();
    let start = body(&all, address);
    let body: Vec<Instruction> = all
        .into_iter()
        .filter(|instruction| instruction.ip() >= start)
        .collect();
    let targets: BTreeSet<u64> = body
        .iter()
        .filter(|instruction| is_jump(instruction))
        .map(Instruction::near_branch_target)
        .collect();
    let (entry, depth) = entry(&body, arguments, &targets)?;
    if targets.range(start..=entry).next().is_some() {
        return Err("its beginning is a loop".to_owned());
    }
    Ok(Sites {
        entry: entry - address,
        depth,
        returns: returns(&body, address, end, thunks),
    })
}

/// Where the function's own code begins: behind the landing pad and the call of ftrace, in the
/// forms that they have before and after patching.
fn body(all: &[Instruction], address: u64) -> u64 {
    let mut at = address;
    for instruction in all.iter().take(2) {
        let pad = instruction.len() == 4
            && matches!(instruction.mnemonic(), Mnemonic::Endbr64 | Mnemonic::Nop);
        let ftrace = instruction.len() == 5
            && matches!(
                instruction.mnemonic(),
                Mnemonic::Nop | Mnemonic::Call | Mnemonic::Xchg
            );
        if !(pad || ftrace) {
            break;
        }
        at = instruction.next_ip();
        if ftrace {
            break;
        }
    }
    at
}

/// The first instruction that stays a breakpoint, and how deep the stack is there.
fn entry(
    body: &[Instruction],
    arguments: u32,
    targets: &BTreeSet<u64>,
) -> Result<(u64, u32), String> {
    let held = [
        Register::RDI,
        Register::RSI,
        Register::RDX,
        Register::RCX,
        Register::R8,
        Register::R9,
    ];
    let held = held
        .get(..arguments as usize)
        .ok_or("more arguments than registers")?;
    let mut depth = 0i64;
    let mut info = InstructionInfoFactory::new();
    for (index, instruction) in body.iter().enumerate() {
        let at = instruction.ip();
        // Another tracer's breakpoint, not turned into a jump: good enough for ours.
        if instruction.code() == Code::Int3 {
            return Ok((at, u32::try_from(depth).map_err(|_| "its stack is odd")?));
        }
        let stays = body[index..]
            .iter()
            .take_while(|later| later.ip() < at + JUMP_BYTES)
            .any(|later| is_jump(later) || later.flow_control() == FlowControl::Call)
            || targets.range(at + 1..at + JUMP_BYTES).next().is_some();
        if stays {
            return Ok((at, u32::try_from(depth).map_err(|_| "its stack is odd")?));
        }
        depth -= i64::from(pushed(instruction)?);
        for used in info.info(instruction).used_registers() {
            let writes = !matches!(
                used.access(),
                OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
            );
            if writes && held.contains(&used.register().full_register()) {
                return Err("its arguments are gone before a place where a probe stays".to_owned());
            }
        }
    }
    Err("no place where a probe stays".to_owned())
}

/// A jump whose target its bytes tell: like a call, the kernel does not move it out of line together
/// with its neighbours (`can_boost`).
fn is_jump(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
    )
}

/// By how much an instruction moves the stack pointer.
fn pushed(instruction: &Instruction) -> Result<i32, String> {
    let implicit = instruction.stack_pointer_increment();
    if implicit != 0 {
        return Ok(implicit);
    }
    if instruction.op0_kind() != OpKind::Register
        || instruction.op0_register().full_register() != Register::RSP
    {
        return Ok(0);
    }
    let amount = |sign: i64| {
        // No immediate: the amount is in a register or in memory.
        let immediate = instruction.try_immediate(1).ok().map(u64::cast_signed);
        immediate
            .and_then(|bytes| i32::try_from(bytes.checked_mul(sign)?).ok())
            .ok_or_else(|| "its stack is odd".to_owned())
    };
    match instruction.mnemonic() {
        Mnemonic::Sub => amount(-1),
        Mnemonic::Add => amount(1),
        Mnemonic::Cmp | Mnemonic::Test => Ok(0),
        _ => Err("it aligns its stack".to_owned()),
    }
}

fn returns(
    body: &[Instruction],
    address: u64,
    end: u64,
    thunks: &BTreeSet<u64>,
) -> Result<Vec<u64>, String> {
    let mut found = Vec::new();
    // Whether control can come here from the instruction before.
    let mut reached = true;
    for instruction in body {
        let at = instruction.ip() - address;
        let flow = instruction.flow_control();
        let target = instruction.near_branch_target();
        match flow {
            FlowControl::Return => found.push(at),
            // Another tracer's breakpoint; behind a return it is padding.
            _ if instruction.code() == Code::Int3 => {
                if reached {
                    found.push(at);
                }
                continue;
            }
            FlowControl::UnconditionalBranch if thunks.contains(&target) => found.push(at),
            FlowControl::UnconditionalBranch if !(address..end).contains(&target) => {
                return Err("it ends in a jump to elsewhere".to_owned());
            }
            FlowControl::IndirectBranch => return Err("it jumps by a table".to_owned()),
            _ => {}
        }
        reached = !matches!(
            flow,
            FlowControl::Return | FlowControl::UnconditionalBranch | FlowControl::Exception
        );
    }
    if found.is_empty() {
        return Err("no return instruction found".to_owned());
    }
    Ok(found)
}

#[cfg(test)]
#[path = "site_tests.rs"]
mod tests;
