//! What the items of `memory.stat` are called that the kernel's events number.

use std::collections::HashMap;

use super::places::ITEMS;
use crate::kernel::btf::KernelBtf;

/// Enumerations whose numbers the events have; the second goes on where the first ends.
const ENUMERATIONS: [&str; 2] = ["node_stat_item", "memcg_stat_item"];

/// Ends of the enumerations, and of parts of them: no items, and the next item has their number.
const ENDS: [&str; 3] = [
    "NR_VM_NODE_STAT_ITEMS",
    "NR_MEMCG_NODE_STAT_ITEMS",
    "MEMCG_NR_STAT",
];

/// `memory_stats` in mm/memcontrol.c, but for [`ITEMS`]: v2's names, which the reports use on v1 too.
const NAMES: [(&str, &str); 25] = [
    ("MEMCG_KMEM", "kernel"),
    ("MEMCG_SOCK", "sock"),
    ("NR_SHMEM", "shmem"),
    ("MEMCG_ZSWAP_B", "zswap"),
    ("MEMCG_ZSWAPPED", "zswapped"),
    ("MEMCG_SWAP", "swap"),
    ("NR_FILE_MAPPED", "file_mapped"),
    ("NR_FILE_DIRTY", "file_dirty"),
    ("NR_WRITEBACK", "file_writeback"),
    ("NR_SWAPCACHE", "swapcached"),
    ("NR_ANON_THPS", "anon_thp"),
    ("NR_FILE_THPS", "file_thp"),
    ("NR_SHMEM_THPS", "shmem_thp"),
    ("NR_INACTIVE_ANON", "inactive_anon"),
    ("NR_ACTIVE_ANON", "active_anon"),
    ("NR_INACTIVE_FILE", "inactive_file"),
    ("NR_ACTIVE_FILE", "active_file"),
    ("NR_UNEVICTABLE", "unevictable"),
    ("NR_HUGETLB", "hugetlb"),
    ("WORKINGSET_REFAULT_ANON", "workingset_refault_anon"),
    ("WORKINGSET_REFAULT_FILE", "workingset_refault_file"),
    ("WORKINGSET_ACTIVATE_ANON", "workingset_activate_anon"),
    ("WORKINGSET_ACTIVATE_FILE", "workingset_activate_file"),
    ("WORKINGSET_RESTORE_ANON", "workingset_restore_anon"),
    ("WORKINGSET_RESTORE_FILE", "workingset_restore_file"),
];

/// Numbers and names of this kernel's items; one that `memory.stat` does not show is called as the
/// kernel's source calls it. Empty where the types have neither enumeration.
pub fn of_items(btf: &KernelBtf) -> HashMap<i32, String> {
    let mut names = HashMap::new();
    for enumeration in ENUMERATIONS {
        for (item, number) in btf.enum_items(enumeration) {
            if let Ok(number) = i32::try_from(number)
                && !ENDS.contains(&item.as_str())
            {
                // Several names of one number: the first is the item's own.
                names.entry(number).or_insert_with(|| shown(item));
            }
        }
    }
    names
}

fn shown(item: String) -> String {
    let read = ITEMS.iter().map(|it| (it.number, it.name));
    let known = read.chain(NAMES).find(|(number, _)| *number == item);
    known.map_or(item, |(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::kernel::btf::build::{Builder, ENUM};

    #[test]
    fn an_item_has_one_name_here_and_where_its_counter_is_read() {
        for item in &ITEMS {
            assert_eq!(shown(item.number.to_owned()), item.name);
        }
    }

    #[test]
    fn items_are_numbered_as_the_types_say_and_ends_are_none() {
        let mut types = Builder::new();
        types.enumeration(
            "node_stat_item",
            ENUM,
            &[
                ("NR_ANON_MAPPED", 17),
                ("NR_ODD", 18),
                ("NR_VM_NODE_STAT_ITEMS", 45),
            ],
        );
        types.enumeration(
            "memcg_stat_item",
            ENUM,
            &[
                ("MEMCG_SWAP", 45),
                ("MEMCG_KMEM", 50),
                ("MEMCG_NR_STAT", 53),
            ],
        );
        let btf = KernelBtf::from_bytes(&types.bytes(), Path::new("test.btf")).expect("valid BTF");
        let names = of_items(&btf);
        let name = |number: i32| names.get(&number).map(String::as_str);
        assert_eq!(name(17), Some("anon"));
        assert_eq!(name(18), Some("NR_ODD"));
        assert_eq!(name(45), Some("swap"));
        assert_eq!(name(50), Some("kernel"));
        assert_eq!(name(53), None);
    }
}
