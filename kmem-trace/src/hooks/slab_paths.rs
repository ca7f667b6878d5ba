//! The functions that move slab objects without an event: do they have, on this kernel, the
//! arguments that the programs on them take?

use kmem_trace_ebpf::config::Config;

use super::{layout::Sources, table::Hook};
use crate::kernel::btf::{Function, KernelBtf};

/// Checks the arguments of each hook's function, and fills in where the rest is found.
///
/// # Errors
/// A function that type information does not have, or has with other arguments.
pub fn arguments(sources: &Sources<'_>, hooks: &[Hook], config: &mut Config) -> Result<(), String> {
    let btf = sources.btf.map_err(str::to_owned)?;
    for hook in hooks {
        match hook.program {
            "fx_alloc_bulk" => {
                let function = with(btf, hook.symbol, &[POINTER, NUMBER, NUMBER, POINTER])?;
                config.slab_paths.bulk_returns_bool = u32::from(function.returns.size == 1);
                config.bulk_alloc = sources.symbols.address(hook.symbol).unwrap_or(0);
            }
            "fe_free_bulk" => {
                with(btf, hook.symbol, &[POINTER, NUMBER, POINTER])?;
            }
            "fe_cache_free" => {
                with(btf, hook.symbol, &[POINTER, POINTER])?;
            }
            "fx_rcu_sheaf" => {
                let function = with(btf, hook.symbol, &[POINTER, POINTER])?;
                config.slab_paths.sheaf_args = function.params.len() as u32;
            }
            "fx_kmalloc_nolock" => {
                let function = with(btf, hook.symbol, &[NUMBER])?;
                let gfp = function
                    .params
                    .iter()
                    .position(|param| param.type_name == "gfp_t")
                    .ok_or_else(|| format!("{} takes no gfp_t here", hook.symbol))?;
                config.slab_paths.nolock_gfp = gfp as u32;
                config.slab_paths.nolock_args = function.params.len() as u32;
            }
            _ => {
                with(btf, hook.symbol, &[POINTER])?;
            }
        }
    }
    Ok(())
}

/// Kinds of arguments.
const POINTER: bool = true;
const NUMBER: bool = false;

/// The function, if its first arguments are of these kinds; those with more than the bulk functions
/// may have, whose arrays would be elsewhere, are refused there by the count.
fn with(btf: &KernelBtf, symbol: &str, kinds: &[bool]) -> Result<Function, String> {
    let function = btf.function(symbol).map_err(|error| error.to_string())?;
    let found = |at: usize| {
        function
            .params
            .get(at)
            .map(|param| param.type_name.contains('*'))
    };
    let exactly = symbol.starts_with("kmem_cache_");
    let fits = kinds
        .iter()
        .enumerate()
        .all(|(at, kind)| found(at) == Some(*kind))
        && (!exactly || function.params.len() == kinds.len());
    if !fits {
        let types: Vec<&str> = function
            .params
            .iter()
            .map(|param| param.type_name.as_str())
            .collect();
        return Err(format!(
            "{symbol} has other arguments here: {}",
            types.join(", ")
        ));
    }
    Ok(function)
}
