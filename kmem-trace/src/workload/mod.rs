//! Load to look at: groups of processes with TCP connections, memory and page cache.
//!
//! Lives here: what a load needs ([`Plan`] against [`Limits`]), the cgroups it runs in, the
//! processes that make and hold it ([`worker`]), and small loads for tests ([`churn`]).
//! Does not live here: anything about BPF, tracing or kmem accounting.
//!
//! ```text
//! caller ── Running ──(socket)── supervisor ── keeper of group-00 ── server, client, server, …
//!                                          └── keeper of group-01 ── …
//! ```
//!
//! The supervisor is this very program, run again as `__worker supervise` in the caller's own
//! cgroup. It is single-threaded, so it may fork; its children never exec, so what they touch of
//! the program stays charged outside of the groups. Each keeper moves itself into its cgroup
//! before it allocates anything and makes the group's network namespace; its children inherit
//! both. When the caller is gone, for whatever reason, the supervisor sees its socket close,
//! ends the load and removes the cgroups; when the supervisor is killed too, the kernel kills the
//! rest (`PR_SET_PDEATHSIG`) and only empty cgroups remain, which the next start removes.
//!
//! A load lives as long as its [`Running`]. To leave it standing for a second terminal, the
//! caller stays alive and keeps it.

pub mod churn;
mod error;
mod groups;
mod limits;
mod message;
mod plan;
mod running;
pub mod worker;

pub use error::WorkloadError;
pub use groups::Hierarchy;
pub use limits::Limits;
pub use plan::{Layout, Plan};
pub use running::{Progress, Running, Workload};
