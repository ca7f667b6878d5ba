//! What a role of the hook table is: what it is served by, what that needs, and how good it then is.

/// How a program hears of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mechanism {
    Kprobe,
    Fentry,
    RawTracepoint,
    Tracepoint,
    /// A raw tracepoint whose arguments the verifier knows by type.
    BtfTracepoint,
    /// No program: the others read it in the kernel's memory.
    Read,
}

impl Mechanism {
    /// As users know it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kprobe => "kprobe",
            Self::Fentry => "fentry",
            Self::RawTracepoint => "raw tracepoint",
            Self::Tracepoint => "tracepoint",
            Self::BtfTracepoint => "BTF tracepoint",
            Self::Read => "kernel read",
        }
    }
}

/// Where in a function, or on which tracepoint, one program goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Kprobe,
    Kretprobe,
    /// A breakpoint where this many arguments are still in their registers (see `site`).
    Inside {
        arguments: u32,
    },
    /// Breakpoints on the return instructions.
    Returns,
    Fentry,
    Fexit,
    RawTracepoint,
    /// A classic tracepoint of this category.
    Tracepoint(&'static str),
    /// A tracepoint of this category by its BTF type: needs no tracefs.
    BtfTracepoint(&'static str),
}

/// One program on one symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    pub symbol: &'static str,
    pub program: &'static str,
    pub place: Place,
}

impl Hook {
    /// Whether it is a fentry or fexit program's.
    pub fn is_on_function(&self) -> bool {
        matches!(self.place, Place::Fentry | Place::Fexit)
    }
}

/// Something a candidate cannot do without, beyond its symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Need {
    /// From a page counter to its cgroup: members, and the address of `memory_cgrp_subsys`.
    CounterOwner,
    /// From a `struct mem_cgroup` to its id.
    MemcgId,
    /// Positions of the user charge's arguments, by name.
    UserChargeArguments,
    /// From a `struct kernfs_open_file` to cgroup and file name.
    OpenFile,
    /// Positions of a limit file's handler's arguments, by type.
    LimitArguments,
    /// Positions of the arguments of what sets the kernel memory limit, by type.
    KmemLimitArguments,
    /// The kernel skips a program that interrupts itself.
    GuardedPrograms,
    /// It does not.
    UnguardedPrograms,
    /// From a descriptor of ours to the program that it is.
    OwnPrograms,
    /// Items of `memory.stat` and their numbers.
    StatItems,
    /// From an object's address to its slab page, cache and payer.
    SlabPlace,
    /// The event of a free comes before it: the object still says who pays.
    FreeToldBefore,
    /// It comes when the object no longer does.
    FreeToldAfter,
    /// Where a CPU's preempt count is.
    PreemptCount,
    /// Arguments and results of the functions that move slab objects without an event.
    SlabPathArguments,
    /// The traced cgroups are of cgroup v1.
    V1,
    /// The traced cgroups are of cgroup v2.
    V2,
}

/// How good a candidate's answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Exact,
    Bounded,
    Missing,
}

impl Status {
    /// As the screen and JSON say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Bounded => "bounded",
            Self::Missing => "missing",
        }
    }
}

/// One way to serve a role.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    pub mechanism: Mechanism,
    pub hooks: &'static [Hook],
    pub needs: &'static [Need],
    pub gives: Status,
    /// What to know about it; empty where there is nothing.
    pub remark: &'static str,
}

/// One thing to be seen.
#[derive(Clone, Copy, Debug)]
pub struct Role {
    pub name: &'static str,
    /// What it is for, in a few words.
    pub purpose: &'static str,
    pub candidates: &'static [Candidate],
    /// What the tool cannot say without it.
    pub without: &'static str,
    /// Attached only when asked for (`--events`), because it costs more than it tells.
    pub on_request: bool,
}
