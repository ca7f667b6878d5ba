//! What the program that checks the offsets returns: how far it came from the running task to the
//! id of its memory cgroup.

/// All of it is as it should be.
pub const HOLDS: u32 = 1;
/// The task leads to no memory cgroup.
pub const NO_MEMCG: u32 = 2;
/// What it leads to is not the memory controller's.
pub const OTHER_SUBSYSTEM: u32 = 3;
/// The cgroup has another id than its directory.
pub const OTHER_ID: u32 = 4;
/// The cgroup is not its own ancestor.
pub const OTHER_ANCESTORS: u32 = 5;
/// The page counter above the cgroup's is in no memory cgroup.
pub const OTHER_COUNTER: u32 = 6;
