//! What `/proc` and its neighbours say about the node, a process and ourselves: memory and slab
//! totals, CPUs and their softirqs, the boot command line, names. Files of cgroups are in `cgroupfs`.

pub mod cpus;
pub mod meminfo;
pub mod own;
pub mod slab_lists;
pub mod slabinfo;
pub mod softirqs;
pub mod system;
pub mod zoneinfo;

pub use meminfo::{NodeMemory, node as meminfo};
pub use own::{OwnCost, own_cost};
pub use system::release;
