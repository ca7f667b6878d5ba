//! Ids of a running session → names for events.

use super::session::Session;
use crate::{
    kernel::cgroupfs::Hierarchy,
    reconcile::limit,
    view::{event::Names, name},
};

/// The names that a session knows.
pub struct SessionNames<'a>(pub &'a Session);

impl Names for SessionNames<'_> {
    fn cgroup(&self, id: u64) -> String {
        name::path(&self.0.tree.name(id))
    }

    fn counter(&self, slot: u8) -> &'static str {
        match (slot, self.0.hierarchy) {
            (0, _) => "memory",
            (1, _) => "kmem",
            (2, Hierarchy::V1) => "memsw",
            (2, Hierarchy::V2) => "swap",
            _ => "tcpmem",
        }
    }

    fn item(&self, item: i32) -> String {
        self.0.item_name(item)
    }

    fn limits(&self, cgroup_id: u64) -> limit::Kernel {
        self.0.limit_facts(cgroup_id)
    }

    fn call_site(&self, address: u64) -> String {
        self.0.call_site(address)
    }
}
