//! Which program goes on which hook of this kernel: one table, a plan made from it, and the plan
//! carried out.
//!
//! - [`accounting`]: how the kernel's accounting works, as far as figures depend on it.
//! - [`role`]: what a role is.
//! - [`table`]: roles and their candidates, and all that is known about each.
//! - [`allowed`]: what this kernel lets us do, found by trying.
//! - `bare`: bpf(2) for what aya has no call for.
//! - [`beside`]: what takes long, in a thread of its own.
//! - [`inspect`]: everything a plan depends on, read once.
//! - [`loader`]: aya's loader, made once.
//! - `loading`: programs handed to the kernel.
//! - [`layout`]: struct offsets, argument positions and item numbers, from type information.
//! - [`slab_layout`]: the same for the way from a slab object to its payer.
//! - [`plan`]: the candidate chosen for each role, and why.
//! - [`memcg_stat`]: a memory cgroup's own counters, read on request.
//! - [`site`]: where in a function a kprobe stands that no interrupt can hide events from.
//! - [`features`]: what the kernel lacks for that, and the object with the programs that fit it.
//! - [`mapping`]: the totals as the programs write them, read without a system call.
//! - [`handed`]: the same where the kernel maps no arrays.
//! - [`kept`]: whichever it is.
//! - [`pairs`]: two programs on one event, one for what the kernel skips of the other.
//! - `skipped`: what it skipped of both.
//! - [`unwatched`]: softirqs in which it ran none at all.
//! - [`recycling`]: places of the totals and sums given back, switches turned.
//! - [`verify`]: whether all that was read is of this kernel.
//! - [`attach`]: the plan loaded and attached.

pub mod accounting;
pub mod allowed;
pub mod attach;
mod bare;
pub mod beside;
pub mod cast;
pub mod context;
pub mod features;
pub mod handed;
pub mod inspect;
pub mod kept;
pub mod layout;
pub mod limits;
pub mod loader;
mod loading;
pub mod mapping;
pub mod memcg_stat;
#[cfg(test)]
mod old_kernels;
pub mod pairs;
pub mod plan;
pub mod recycling;
pub mod role;
pub mod site;
mod skipped;
pub mod slab_layout;
pub mod slab_paths;
pub mod stats;
pub mod table;
pub mod unwatched;
pub mod verify;
