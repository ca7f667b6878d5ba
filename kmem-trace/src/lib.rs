//! kmem-trace's userspace, in the order the data flows.
//!
//! kernel → wire (`kmem_trace_ebpf`) → [`stream`] → [`ledger`] → [`reconcile`] → [`view`].
//! [`kernel`] reads what the running kernel says, [`hooks`] chooses and attaches, [`diagnosis`] says
//! what that allows, [`command`] strings the rooms together, [`workload`] makes load to look at.

pub mod command;
pub mod diagnosis;
pub mod hooks;
pub mod kernel;
pub mod ledger;
pub mod reconcile;
pub mod stream;
pub mod view;
pub mod workload;
