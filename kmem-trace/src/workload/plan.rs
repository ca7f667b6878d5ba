//! How much load, and the arithmetic whether this machine can carry it. Pure: limits come in.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Hierarchy, Limits, WorkloadError};

/// Bytes of kernel memory that one loopback connection takes, both ends, accepted and idle:
/// measured 9 868 on 6.18 (20 × 20 000 connections: Slab grew by 3 854 860 KiB), rounded up.
pub const BYTES_PER_CONNECTION: u64 = 10 * 1024;
/// Bytes for one process of the load: stacks, page tables, task; and for a network namespace.
const BYTES_PER_PROCESS: u64 = 256 * 1024;
const BYTES_PER_NAMESPACE: u64 = 512 * 1024;
/// File descriptors a worker needs for itself.
const FILES_RESERVED: u64 = 32;
/// Connections from one source to one destination address and port. A new network namespace has
/// the local ports 32768–60999, 28 232 of them; `connect()` takes the even ones first and only
/// searches on when those are used up, so half of it stays fast. All of 127/8 is local, so the
/// next connections go to the next address.
pub const CONNECTIONS_PER_ADDRESS: u64 = 14_000;
/// Listening ports: one for each server of a group, below the range of local ports.
pub const FIRST_PORT: u16 = 20_000;
const PORTS: u64 = 12_000;

/// What to make.
#[derive(Clone, Debug)]
pub struct Plan {
    pub groups: u32,
    /// TCP connections of each group.
    pub connections: u64,
    /// Anonymous memory and page cache of each group, bytes.
    pub anon_bytes: u64,
    pub file_bytes: u64,
    /// Directory of the parent cgroup; made if missing.
    pub parent: PathBuf,
    pub hierarchy: Hierarchy,
    /// Where page cache files go (each unlinked at once). On tmpfs they count as shared memory.
    pub file_dir: PathBuf,
}

/// A plan that fits, split over processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    pub groups: u32,
    /// Connections of each group, by pair of a server and a client process.
    pub pairs: Vec<u64>,
    pub anon_bytes: u64,
    pub file_bytes: u64,
    pub file_dir: PathBuf,
}

impl Plan {
    /// Reads this machine's limits and does the arithmetic.
    ///
    /// # Errors
    /// [`WorkloadError::DoesNotFit`] with the arithmetic, or a limit could not be read.
    pub fn check(&self) -> Result<Layout, WorkloadError> {
        self.layout(&Limits::read(&self.file_dir)?)
    }

    /// Splits the load over processes as `limits` demand, or refuses.
    ///
    /// # Errors
    /// [`WorkloadError::DoesNotFit`] with the arithmetic in one line.
    pub fn layout(&self, limits: &Limits) -> Result<Layout, WorkloadError> {
        if self.groups == 0 {
            return refuse("0 groups make no load: ask for one at least".into());
        }
        let groups = u64::from(self.groups);
        let usable = limits.files_per_process.saturating_sub(FILES_RESERVED);
        if usable == 0 {
            return refuse(format!(
                "a process may open {} files and needs {FILES_RESERVED} for itself: raise `ulimit -Hn`",
                limits.files_per_process
            ));
        }
        let pairs = self.connections.div_ceil(usable);
        if pairs > PORTS {
            return refuse(format!(
                "{} connections a group at {usable} a process are {pairs} servers, each on a port \
                 of its own, but {PORTS} are set aside: ask for fewer, or raise `ulimit -Hn`",
                self.connections
            ));
        }
        let processes = 1 + groups * (1 + 2 * pairs);
        within(limits.tasks_max, limits.tasks, processes, || {
            format!(
                "{groups} groups × (1 keeper + {pairs} servers + {pairs} clients) + 1 = {processes} \
                 processes beside {} tasks, of {} allowed: ask for fewer groups, or raise sysctl \
                 kernel.pid_max and kernel.threads-max",
                limits.tasks, limits.tasks_max
            )
        })?;
        if self.connections > 0 && groups > limits.net_namespaces_max {
            return refuse(format!(
                "{groups} groups are {groups} network namespaces, of {} allowed: ask for fewer \
                 groups, or raise sysctl user.max_net_namespaces",
                limits.net_namespaces_max
            ));
        }
        let connections = groups.saturating_mul(self.connections);
        let files = connections
            .saturating_mul(2)
            .saturating_add(processes.saturating_mul(FILES_RESERVED));
        within(limits.files_max, limits.files_open, files, || {
            format!(
                "{groups} groups × {} connections × 2 ends + {processes} processes × \
                 {FILES_RESERVED} = {files} open files beside {} now, of {} on the node: ask for \
                 fewer, or raise sysctl fs.file-max",
                self.connections, limits.files_open, limits.files_max
            )
        })?;
        self.check_memory(limits, connections, processes)?;
        self.check_disk(limits)?;
        Ok(Layout {
            groups: self.groups,
            pairs: spread(self.connections, pairs),
            anon_bytes: self.anon_bytes,
            file_bytes: self.file_bytes,
            file_dir: self.file_dir.clone(),
        })
    }

    /// Not checked: `net.ipv4.tcp_mem`. It bounds what sockets have queued; idle ones queue
    /// nothing.
    fn check_memory(
        &self,
        limits: &Limits,
        connections: u64,
        processes: u64,
    ) -> Result<(), WorkloadError> {
        let groups = u64::from(self.groups);
        let need = [
            connections.saturating_mul(BYTES_PER_CONNECTION),
            groups.saturating_mul(self.anon_bytes),
            groups.saturating_mul(self.file_bytes),
            groups.saturating_mul(BYTES_PER_NAMESPACE),
            processes.saturating_mul(BYTES_PER_PROCESS),
        ]
        .into_iter()
        .fold(0, u64::saturating_add);
        // A tenth stays free: what is not counted here must not bring the OOM killer.
        let allowed = limits.available_bytes / 10 * 9;
        within(allowed, 0, need, || {
            format!(
                "{groups} groups × ({} connections × {} KiB + {} MiB anonymous + {} MiB page cache) \
                 + {processes} processes = {} MiB, of {} MiB (nine tenths of MemAvailable): ask \
                 for less",
                self.connections,
                BYTES_PER_CONNECTION >> 10,
                self.anon_bytes >> 20,
                self.file_bytes >> 20,
                need.div_ceil(1 << 20),
                allowed >> 20,
            )
        })
    }

    fn check_disk(&self, limits: &Limits) -> Result<(), WorkloadError> {
        let need = u64::from(self.groups).saturating_mul(self.file_bytes);
        within(limits.disk_bytes, 0, need, || {
            format!(
                "{} groups × {} MiB page cache = {} MiB of files, but {} has {} MiB free: ask for \
                 less, or another directory",
                self.groups,
                self.file_bytes >> 20,
                need >> 20,
                self.file_dir.display(),
                limits.disk_bytes >> 20
            )
        })
    }
}

impl Layout {
    /// Connections of all groups.
    #[must_use]
    pub fn connections(&self) -> u64 {
        u64::from(self.groups) * self.pairs.iter().sum::<u64>()
    }

    /// Bytes of anonymous memory and page cache of all groups.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.groups) * (self.anon_bytes + self.file_bytes)
    }

    /// Keeper, servers and clients of one group.
    #[must_use]
    pub fn workers_per_group(&self) -> u32 {
        u32::try_from(1 + 2 * self.pairs.len()).unwrap_or(u32::MAX)
    }

    /// All workers; the supervisor is not one of them.
    #[must_use]
    pub fn workers(&self) -> u32 {
        self.groups.saturating_mul(self.workers_per_group())
    }
}

fn refuse<T>(arithmetic: String) -> Result<T, WorkloadError> {
    Err(WorkloadError::DoesNotFit(arithmetic))
}

fn within(
    limit: u64,
    used: u64,
    need: u64,
    arithmetic: impl Fn() -> String,
) -> Result<(), WorkloadError> {
    if used.saturating_add(need) > limit {
        refuse(arithmetic())
    } else {
        Ok(())
    }
}

/// `total` in `parts` that differ by one at most.
fn spread(total: u64, parts: u64) -> Vec<u64> {
    (0..parts)
        .map(|i| total / parts + u64::from(i < total % parts))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(groups: u32, connections: u64) -> Plan {
        Plan {
            groups,
            connections,
            anon_bytes: 0,
            file_bytes: 0,
            parent: "/sys/fs/cgroup/memory/test".into(),
            hierarchy: Hierarchy::V1,
            file_dir: "/tmp".into(),
        }
    }

    fn limits() -> Limits {
        Limits {
            files_per_process: 20_000,
            files_max: 2_466_183,
            files_open: 1_000,
            tasks_max: 32_768,
            tasks: 200,
            net_namespaces_max: 96_000,
            available_bytes: 23 << 30,
            disk_bytes: 78 << 30,
        }
    }

    fn refusal(plan: &Plan, limits: &Limits) -> String {
        plan.layout(limits).unwrap_err().to_string()
    }

    #[test]
    fn the_real_thing_fits_in_two_pairs_a_group() {
        let layout = plan(20, 20_000).layout(&limits()).unwrap();
        assert_eq!(layout.pairs, [10_000, 10_000]);
        assert_eq!(layout.connections(), 400_000);
        assert_eq!((layout.workers_per_group(), layout.workers()), (5, 100));
    }

    #[test]
    fn a_load_without_connections_needs_keepers_only() {
        let layout = plan(3, 0).layout(&limits()).unwrap();
        assert_eq!((layout.pairs.len(), layout.workers()), (0, 3));
    }

    #[test]
    fn fewer_files_a_process_means_more_processes() {
        let limits = Limits {
            files_per_process: 1_024,
            ..limits()
        };
        let layout = plan(1, 2_500).layout(&limits).unwrap();
        assert_eq!(layout.pairs, [834, 833, 833]);
    }

    #[test]
    fn no_groups_are_refused() {
        assert!(refusal(&plan(0, 5), &limits()).contains("0 groups"));
    }

    #[test]
    fn a_limit_of_files_that_leaves_none_is_refused() {
        let limits = Limits {
            files_per_process: 32,
            ..limits()
        };
        assert!(refusal(&plan(1, 1), &limits).contains("ulimit -Hn"));
    }

    #[test]
    fn too_little_memory_is_refused_with_the_arithmetic() {
        let limits = Limits {
            available_bytes: 2 << 30,
            ..limits()
        };
        let text = refusal(&plan(20, 20_000), &limits);
        assert!(
            text.contains("20 groups × (20000 connections × 10 KiB"),
            "{text}"
        );
        assert!(text.contains("= 3942 MiB, of 1843 MiB"), "{text}");
    }

    #[test]
    fn anonymous_memory_counts_too() {
        let plan = Plan {
            anon_bytes: 3 << 30,
            ..plan(10, 0)
        };
        assert!(refusal(&plan, &limits()).contains("3072 MiB anonymous"));
    }

    #[test]
    fn too_few_open_files_on_the_node_are_refused() {
        let limits = Limits {
            files_max: 500_000,
            ..limits()
        };
        let text = refusal(&plan(20, 20_000), &limits);
        assert!(
            text.contains("× 2 ends + 101 processes × 32 = 803232 open files"),
            "{text}"
        );
    }

    #[test]
    fn too_few_processes_are_refused() {
        let limits = Limits {
            tasks_max: 250,
            ..limits()
        };
        assert!(refusal(&plan(20, 20_000), &limits).contains("= 101 processes beside 200 tasks"));
    }

    #[test]
    fn too_few_network_namespaces_are_refused_only_when_needed() {
        let limits = Limits {
            net_namespaces_max: 10,
            ..limits()
        };
        assert!(refusal(&plan(11, 1), &limits).contains("user.max_net_namespaces"));
        assert!(plan(11, 0).layout(&limits).is_ok());
    }

    #[test]
    fn a_full_disk_is_refused() {
        let plan = Plan {
            file_bytes: 1 << 20,
            ..plan(4, 0)
        };
        let limits = Limits {
            disk_bytes: 3 << 20,
            ..limits()
        };
        assert!(refusal(&plan, &limits).contains("/tmp has 3 MiB free"));
    }

    #[test]
    fn absurd_numbers_are_refused_and_do_not_overflow() {
        let plan = Plan {
            anon_bytes: u64::MAX,
            file_bytes: u64::MAX,
            ..plan(u32::MAX, u64::MAX)
        };
        assert!(plan.layout(&limits()).is_err());
        assert!(
            Plan {
                connections: 1,
                ..plan
            }
            .layout(&limits())
            .is_err()
        );
    }

    proptest! {
        #[test]
        fn no_process_gets_more_connections_than_it_may_open_files(
            connections in 0u64..200_000, files in 40u64..50_000
        ) {
            let limits = Limits { files_per_process: files, ..limits() };
            if let Ok(layout) = plan(1, connections).layout(&limits) {
                prop_assert_eq!(layout.connections(), connections);
                prop_assert!(layout.pairs.iter().all(|&n| n > 0 && n + FILES_RESERVED <= files));
            }
        }
    }
}
