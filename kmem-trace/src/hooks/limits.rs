//! Where this kernel keeps limits, and how the handlers of limit files are called: offsets and
//! argument positions for the limit programs. What a write meant is said in `reconcile::limit`.

use kmem_trace_ebpf::{
    config::{ABSENT, Config, KmemLimitArguments, LimitArguments},
    record::{LIMIT_HIGH, LIMIT_LOW, LIMIT_MIN, LIMIT_SOFT},
};

use crate::kernel::btf::{Function, KernelBtf};

/// How to read what says whether a cgroup's kernel memory is accounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accounting {
    /// It is this value when it is (`kmem_state`).
    Equals(u32),
    /// It has one of these bits when it is (`kmem_acct_active`, `kmem_account_flags`).
    NotZero(u32),
    /// Nothing says so, because no cgroup can be without.
    Always,
    /// The type information lacks what is needed.
    Unknown,
}

/// What a kernel's memory counters count in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// `struct page_counter`.
    Pages,
    /// `struct res_counter`.
    Bytes,
}

/// Fills in what there is; the rest stays [`ABSENT`] and its figures unread.
pub fn layout(btf: &KernelBtf, config: &mut Config) {
    // `struct mem_cgroup`'s counters by slot, with the names they had as `struct res_counter`.
    let counters: [&[&str]; 4] = [
        &["memory", "res"],
        &["kmem"],
        &["memsw", "swap"],
        &["tcpmem"],
    ];
    for (slot, names) in counters.into_iter().enumerate() {
        config.limit_at[slot] = first(btf, names, &[".max", ".limit"], 8);
        config.usage_at[slot] = first(btf, names, &[".usage", ".count"], 8);
    }
    config.limit_at[LIMIT_HIGH] = first(btf, &["memory.high", "high"], &[""], 8);
    config.limit_at[LIMIT_SOFT] = first(btf, &["soft_limit", "res.soft_limit"], &[""], 8);
    config.limit_at[LIMIT_MIN] = first(btf, &["memory.min"], &[""], 8);
    config.limit_at[LIMIT_LOW] = first(btf, &["memory.low", "low"], &[""], 8);
    config.memcg_css = place(btf, "mem_cgroup", "css", None);
    config.cgroup_memory_css = memory_css(btf);
    (config.memcg_kmem_state, config.memcg_kmem_state_bytes) = kmem_state(btf);
    config.cgroup_populated = either(btf, &["nr_populated_csets", "populated_cnt"], Some(4));
    config.cgroup_descendants = either(btf, &["nr_descendants"], Some(4));
    config.cgroup_children = either(btf, &["self.children", "children"], Some(16));
    // An array holds the name itself; a pointer is not followed.
    config.cftype_name = btf
        .member("cftype", "name")
        .ok()
        .filter(|member| member.array_len.is_some())
        .map_or(ABSENT, |member| member.offset);
}

/// Offset of a member, if it has that many bytes.
fn place(btf: &KernelBtf, strukt: &str, path: &str, bytes: Option<u32>) -> u32 {
    btf.member(strukt, path)
        .ok()
        .filter(|member| member.bits.is_none() && bytes.is_none_or(|bytes| member.size == bytes))
        .map_or(ABSENT, |member| member.offset)
}

/// The first of `names` × `ends` that `struct mem_cgroup` has.
fn first(btf: &KernelBtf, names: &[&str], ends: &[&str], bytes: u32) -> u32 {
    names
        .iter()
        .flat_map(|name| ends.iter().map(move |end| format!("{name}{end}")))
        .map(|path| place(btf, "mem_cgroup", &path, Some(bytes)))
        .find(|offset| *offset != ABSENT)
        .unwrap_or(ABSENT)
}

fn either(btf: &KernelBtf, names: &[&str], bytes: Option<u32>) -> u32 {
    names
        .iter()
        .map(|name| place(btf, "cgroup", name, bytes))
        .find(|offset| *offset != ABSENT)
        .unwrap_or(ABSENT)
}

/// `cgroup->subsys[memory_cgrp_id]`: an array of pointers.
fn memory_css(btf: &KernelBtf) -> u32 {
    let subsys = place(btf, "cgroup", "subsys", None);
    let id = super::layout::memory_subsystem(btf);
    match (subsys, id) {
        (ABSENT, _) | (_, None) => ABSENT,
        (subsys, Some(id)) => subsys + id * 8,
    }
}

/// What says whether kernel memory is accounted, and how many bytes of it to read.
fn kmem_state(btf: &KernelBtf) -> (u32, u32) {
    // Of a word of flags the lower half is read: little endian.
    for (name, bytes, read) in [
        ("kmem_state", 4, 4),
        ("kmem_acct_active", 1, 1),
        ("kmem_account_flags", 8, 4),
    ] {
        let offset = place(btf, "mem_cgroup", name, Some(bytes));
        if offset != ABSENT {
            return (offset, read);
        }
    }
    (ABSENT, 0)
}

/// How the raw figure of [`kmem_state`] reads.
pub fn accounting(btf: &KernelBtf) -> Accounting {
    if btf.has_member("mem_cgroup", "kmem_state") {
        // The enumeration has no name.
        return match btf.enum_value(None, "KMEM_ONLINE") {
            Ok(online) => Accounting::Equals(online as u32),
            Err(_) => Accounting::Unknown,
        };
    }
    if btf.has_member("mem_cgroup", "kmem_acct_active") {
        return Accounting::NotZero(u32::MAX);
    }
    if btf.has_member("mem_cgroup", "kmem_account_flags") {
        return match btf.enum_value(None, "KMEM_ACCOUNTED_ACTIVE") {
            Ok(bit @ 0..32) => Accounting::NotZero(1 << bit),
            _ => Accounting::Unknown,
        };
    }
    Accounting::Always
}

/// What this kernel's memory counters count in.
pub fn unit(btf: &KernelBtf) -> Unit {
    let is_bytes = ["memory", "res"].iter().any(|name| {
        btf.member("mem_cgroup", name)
            .is_ok_and(|member| member.type_name == "struct res_counter")
    });
    if is_bytes { Unit::Bytes } else { Unit::Pages }
}

fn prototype(btf: Result<&KernelBtf, &str>, symbol: &str) -> Result<Function, String> {
    btf.map_err(str::to_owned)?
        .function(symbol)
        .map_err(|error| error.to_string())
}

/// Position of the first parameter of one of these types, `const` or not.
fn of_type(function: &Function, types: &[&str]) -> u32 {
    function
        .params
        .iter()
        .position(|param| {
            let bare = param.type_name.trim_start_matches("const ");
            types.contains(&bare)
        })
        .map_or(ABSENT, |found| found as u32)
}

/// Arguments of a limit file's handler: `(kernfs_open_file *, char *buf, size_t nbytes, loff_t)`,
/// before 3.16 `(cgroup_subsys_state *, cftype *, const char *)`, before 3.12
/// `(cgroup *, cftype *, const char *)`.
///
/// # Errors
/// Where the function is not known or takes something else; `open_file` is why the first form
/// cannot be followed.
pub fn handler(
    btf: Result<&KernelBtf, &str>,
    symbol: &str,
    open_file: Option<&str>,
    config: &mut Config,
) -> Result<(), String> {
    let function = prototype(btf, symbol)?;
    let css = of_type(&function, &["struct cgroup_subsys_state *"]);
    let found = LimitArguments {
        open_file: of_type(&function, &["struct kernfs_open_file *"]),
        cgroup: if css == ABSENT {
            of_type(&function, &["struct cgroup *"])
        } else {
            css
        },
        cgroup_is_css: u32::from(css != ABSENT),
        cftype: of_type(&function, &["struct cftype *"]),
        text: of_type(&function, &["char *"]),
        text_len: of_type(&function, &["size_t", "long unsigned int", "unsigned long"]),
        count: function.params.len() as u32,
    };
    if found.text == ABSENT {
        return Err(format!("{symbol} has no argument that is a text"));
    }
    if found.open_file != ABSENT {
        if let Some(why) = open_file {
            return Err(why.to_owned());
        }
    } else if found.cgroup == ABSENT {
        return Err(format!("{symbol} has no argument that leads to a cgroup"));
    } else if config.cftype_name == ABSENT {
        return Err("this kernel's struct cftype keeps its name elsewhere".to_owned());
    }
    config.limit_args = found;
    Ok(())
}

/// Arguments of `memcg_update_kmem_limit(mem_cgroup * or cgroup *, value)`.
///
/// # Errors
/// As [`handler`].
pub fn kmem_limit(
    btf: Result<&KernelBtf, &str>,
    symbol: &str,
    config: &mut Config,
) -> Result<(), String> {
    let function = prototype(btf, symbol)?;
    let cgroup = of_type(&function, &["struct cgroup *"]);
    let memcg = of_type(&function, &["struct mem_cgroup *"]);
    let target = if memcg == ABSENT { cgroup } else { memcg };
    let value = function
        .params
        .iter()
        .position(|param| !param.type_name.contains('*') && param.size == 8);
    let (Some(value), true) = (value, target != ABSENT) else {
        return Err(format!("{symbol} does not take a cgroup and a value here"));
    };
    config.kmem_limit_args = KmemLimitArguments {
        target,
        target_is_cgroup: u32::from(memcg == ABSENT),
        value: value as u32,
        count: function.params.len() as u32,
    };
    Ok(())
}
