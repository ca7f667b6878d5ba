//! The memory controller's cgroup file system, v1 or v2.

pub mod mountinfo;
