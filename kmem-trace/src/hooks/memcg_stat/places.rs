//! Which counters a memory cgroup has and what leads to them, from type information.

use kmem_trace_ebpf::{
    config::{ABSENT, Config},
    words::Members,
};

use super::super::{layout, limits};
use crate::kernel::btf::KernelBtf;

/// What a counter counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    KiB,
    Pages,
}

impl Unit {
    /// A figure in bytes.
    pub fn bytes(self, figure: u64, page_bytes: u64) -> u64 {
        figure.saturating_mul(match self {
            Self::Bytes => 1,
            Self::KiB => 1024,
            Self::Pages => page_bytes,
        })
    }
}

/// A counter under the name that v2's `memory.stat` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    pub name: &'static str,
    enumeration: &'static str,
    /// As the kernel's enumeration has it.
    pub number: &'static str,
    pub unit: Unit,
}

const fn node(name: &'static str, number: &'static str, unit: Unit) -> Item {
    Item {
        name,
        enumeration: "node_stat_item",
        number,
        unit,
    }
}

const fn own(name: &'static str, number: &'static str, unit: Unit) -> Item {
    Item {
        name,
        enumeration: "memcg_stat_item",
        number,
        unit,
    }
}

/// Kernel memory by kind (`memory_stats` in mm/memcontrol.c), and two that every kernel shows in
/// v1's `memory.stat` too, to check all of them by.
pub const ITEMS: [Item; 9] = [
    node("slab_reclaimable", "NR_SLAB_RECLAIMABLE_B", Unit::Bytes),
    node("slab_unreclaimable", "NR_SLAB_UNRECLAIMABLE_B", Unit::Bytes),
    node("kernel_stack", "NR_KERNEL_STACK_KB", Unit::KiB),
    // Before 5.11 an item of zones, and not kept by memory cgroup.
    node("pagetables", "NR_PAGETABLE", Unit::Pages),
    node("sec_pagetables", "NR_SECONDARY_PAGETABLE", Unit::Pages),
    own("percpu", "MEMCG_PERCPU_B", Unit::Bytes),
    own("vmalloc", "MEMCG_VMALLOC", Unit::Pages),
    node("anon", "NR_ANON_MAPPED", Unit::Pages),
    node("file", "NR_FILE_PAGES", Unit::Pages),
];

/// Items' numbers.
pub struct Numbers {
    /// How many numbers there are, gaps included.
    pub count: usize,
    found: Vec<(&'static str, usize)>,
}

impl Numbers {
    /// `None` where this kernel has no such item.
    pub fn of(&self, item: &Item) -> Option<usize> {
        self.found
            .iter()
            .find(|(name, _)| *name == item.name)
            .map(|(_, number)| *number)
    }

    fn read(btf: &KernelBtf) -> Result<Self, String> {
        let number = |enumeration: &str, name: &str| {
            let value = btf.enum_value(Some(enumeration), name).ok()?;
            usize::try_from(value).ok()
        };
        let count = number("memcg_stat_item", "MEMCG_NR_STAT")
            .ok_or("this kernel's type information does not number its counters")?;
        let found = ITEMS
            .iter()
            .filter_map(|item| Some((item.name, number(item.enumeration, item.number)?)))
            .collect();
        Ok(Self { count, found })
    }
}

/// All of it.
pub struct Places {
    pub config: Config,
    pub members: Members,
    pub numbers: Numbers,
    /// Length of the array of counters.
    pub counters: usize,
}

/// Resolves the places.
///
/// # Errors
/// In one line, where the types lack a member on the way.
pub fn resolve(btf: &KernelBtf) -> Result<Places, String> {
    let (config, mut members) = path(btf)?;
    let counters = counters(btf, &mut members)?;
    Ok(Places {
        config,
        members,
        numbers: Numbers::read(btf)?,
        counters,
    })
}

/// What leads from a task's open directory to the memory cgroup of that directory.
///
/// # Errors
/// In one line, where the types lack a member on the way.
pub fn path(btf: &KernelBtf) -> Result<(Config, Members), String> {
    let at = |strukt: &str, path: &str| layout::offset(btf, strukt, path);
    let mut config = Config::UNSET;
    limits::layout(btf, &mut config);
    layout::kernfs_id(btf, &mut config)?;
    if [config.cgroup_memory_css, config.memcg_css].contains(&ABSENT) {
        return Err("this kernel's types do not lead from a cgroup to its memory".to_owned());
    }
    let members = Members {
        task_files: at("task_struct", "files")?,
        files_fdt: at("files_struct", "fdt")?,
        fdtable_fd: at("fdtable", "fd")?,
        file_inode: at("file", "f_inode")?,
        inode_private: at("inode", "i_private")?,
        kernfs_node_priv: at("kernfs_node", "priv")?,
        css_cgroup: at("cgroup_subsys_state", "cgroup")?,
        ..Members::UNSET
    };
    Ok((config, members))
}

/// `memcg->vmstats[]` (until 5.12), `memcg->vmstats.state[]`, `memcg->vmstats->state[]` (since 6.0).
/// All of them include the subtree. The length.
fn counters(btf: &KernelBtf, members: &mut Members) -> Result<usize, String> {
    let vmstats = btf
        .member("mem_cgroup", "vmstats")
        .map_err(|error| error.to_string())?;
    let length = |member: crate::kernel::btf::Member| {
        let count = member.array_len.filter(|count| *count > 0);
        count
            .filter(|count| member.size == count * 8)
            .map(|count| count as usize)
            .ok_or_else(|| "this kernel's counters are no array of longs".to_owned())
    };
    members.memcg_counters = vmstats.offset;
    if vmstats.array_len.is_some() {
        return length(vmstats);
    }
    let of = if vmstats.type_name.ends_with('*') {
        members.is_pointer = 1;
        let state = btf
            .member("memcg_vmstats", "state")
            .map_err(|error| error.to_string())?;
        members.counters = state.offset;
        state
    } else {
        let state = btf
            .member("mem_cgroup", "vmstats.state")
            .map_err(|error| error.to_string())?;
        members.memcg_counters = state.offset;
        state
    };
    length(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_becomes_bytes_by_its_unit() {
        assert_eq!(Unit::Bytes.bytes(5, 4096), 5);
        assert_eq!(Unit::KiB.bytes(16, 4096), 16384);
        assert_eq!(Unit::Pages.bytes(3, 4096), 12288);
    }

    #[test]
    fn what_counts_in_bytes_or_kib_says_so_in_its_name() {
        for item in &ITEMS {
            let unit = match item.number {
                name if name.ends_with("_B") => Unit::Bytes,
                name if name.ends_with("_KB") => Unit::KiB,
                _ => Unit::Pages,
            };
            assert_eq!(item.unit, unit, "{}", item.number);
        }
    }
}
