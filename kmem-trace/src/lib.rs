//! kmem-trace's userspace, in the order the data flows.
//!
//! kernel → wire (`kmem_trace_ebpf`) → stream → ledger → reconcile → view. `hooks` chooses and
//! attaches, `command` strings the rooms together, `workload` makes load to look at.

pub mod kernel;
pub mod workload;
