//! What a CPU is in, a task, a softirq or a hardirq: its preempt count says it, as the kernel's own
//! charge path asks it (`in_task`, `in_interrupt`). x86 keeps it in a per-CPU variable.

use kmem_trace_ebpf::config::Config;

use super::layout::Sources;

/// The variable's name before 6.2 and since 6.15.
pub const PREEMPT_COUNT: &str = "__preempt_count";
/// The structure that had it between.
const HOT: &str = "pcpu_hot";
/// What to add to a per-CPU variable's address, by CPU.
const OFFSETS: &str = "__per_cpu_offset";

/// Came together with eight bits that count how often interrupts were switched off (7.3), between
/// softirqs and hardirqs.
const COUNTS_DISABLING: &str = "local_interrupt_disable_state";

/// `HARDIRQ_MASK` (include/linux/preempt.h), whose bits an NMI sets too, with those bits and without.
const HARDIRQ_BITS: [u32; 2] = [0x0f00_0000, 0x000f_0000];

/// Symbols that [`preempt_count`] asks for.
pub const SYMBOLS: [&str; 4] = [PREEMPT_COUNT, HOT, OFFSETS, COUNTS_DISABLING];

/// Fills in where a CPU's preempt count is.
///
/// # Errors
/// Where the symbol table has no variables, or not these.
pub fn preempt_count(sources: &Sources<'_>, config: &mut Config) -> Result<(), String> {
    let absent = |name: &str| {
        if sources.symbols.addresses_hidden {
            "kernel addresses are hidden (needs CAP_SYSLOG, or kernel.kptr_restrict=0)".to_owned()
        } else {
            format!("the symbol table does not show {name}")
        }
    };
    let offsets = sources.symbols.address(OFFSETS);
    let offsets = offsets.ok_or_else(|| absent(OFFSETS))?;
    let count = match sources.symbols.address(PREEMPT_COUNT) {
        Some(count) => count,
        None => {
            let hot = sources.symbols.address(HOT);
            let hot = hot.ok_or_else(|| absent(PREEMPT_COUNT))?;
            let btf = sources.btf.map_err(str::to_owned)?;
            let member = btf.member(HOT, "preempt_count");
            hot + u64::from(member.map_err(|error| error.to_string())?.offset)
        }
    };
    let disabling = sources.symbols.found.contains_key(COUNTS_DISABLING);
    config.hardirq_bits = HARDIRQ_BITS[usize::from(!disabling)];
    config.per_cpu_offset = offsets;
    config.preempt_count = count;
    Ok(())
}
