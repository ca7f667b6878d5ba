//! From an item's number to its counter. Since 6.10 the kernel keeps counters only for the items
//! that memory cgroups use, and a table of bytes from number to place; the table is looked for, and
//! believed only if it maps onto all places, each once.

/// The table, where the symbol list has data.
pub const TABLE: &str = "mem_cgroup_stats_index";
/// A function that looks into the table before anything else.
pub const READER: &str = "memcg_page_state";
/// Bytes of it that are looked through.
pub const CODE_BYTES: usize = 128;

/// Where an item's counter is in the array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Index {
    /// Under its number.
    Direct,
    /// As the table says, by number; `None`: the kernel keeps no such counter.
    Table(Vec<Option<usize>>),
}

impl Index {
    /// The place of an item.
    pub fn place(&self, number: usize) -> Option<usize> {
        match self {
            Self::Direct => Some(number),
            Self::Table(places) => places.get(number).copied().flatten(),
        }
    }

    /// Reads a table of `places` places: one byte a number, which is the place and 255 for none,
    /// or (until 6.12) the place plus one and 0 for none. `None` where it is no such table.
    pub fn of_table(bytes: &[u8], places: usize) -> Option<Self> {
        [(0xff_u8, 0_usize), (0, 1)]
            .into_iter()
            .find_map(|(none, first)| {
                let mut taken = vec![false; places];
                let mut table = Vec::with_capacity(bytes.len());
                for byte in bytes {
                    if *byte == none {
                        table.push(None);
                        continue;
                    }
                    let place = usize::from(*byte).checked_sub(first)?;
                    let slot = taken.get_mut(place)?;
                    if std::mem::replace(slot, true) {
                        return None;
                    }
                    table.push(Some(place));
                }
                taken.iter().all(|it| *it).then_some(Self::Table(table))
            })
    }
}

/// Addresses of byte tables that x86-64 code looks into: `movzx` and `movsx` of a byte at a
/// register plus a 32-bit address. Whether one of them is the table is seen in what it holds.
pub fn tables_used(code: &[u8]) -> Vec<u64> {
    let mut found = Vec::new();
    for at in 0..code.len() {
        let [0x0f, 0xb6 | 0xbe, mode, rest @ ..] = &code[at..] else {
            continue;
        };
        // A register and 32 bits; with register 4, the register is in one more byte.
        let address = match (mode >> 6, mode & 7) {
            (2, 4) => rest.get(1..5),
            (2, _) => rest.get(..4),
            _ => None,
        };
        if let Some(address) = address.and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()) {
            let address = i64::from(i32::from_le_bytes(address)).cast_unsigned();
            if !found.contains(&address) {
                found.push(address);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_counts_from_zero_or_from_one_and_is_told_by_its_gaps() {
        let from_zero = Index::of_table(&[1, 0xff, 0, 2], 3).expect("a table");
        assert_eq!(from_zero.place(0), Some(1));
        assert_eq!(from_zero.place(1), None);
        assert_eq!(from_zero.place(3), Some(2));
        let from_one = Index::of_table(&[2, 0, 1, 3], 3).expect("a table");
        assert_eq!(from_zero, from_one);
    }

    #[test]
    fn bytes_that_leave_a_place_out_or_take_one_twice_are_no_table() {
        assert_eq!(Index::of_table(&[0, 0, 0, 0], 3), None);
        assert_eq!(Index::of_table(&[1, 1, 2, 3], 3), None);
        assert_eq!(Index::of_table(&[1, 2, 0xff, 0xff], 3), None);
        assert_eq!(Index::of_table(&[1, 2, 3, 4], 3), None);
    }

    #[test]
    fn the_address_of_a_table_is_in_the_instruction_that_looks_into_it() {
        // movslq %esi,%rsi; movzbl -0x7d5c9e40(%rsi),%eax; cmp $0xff,%eax
        let code = [
            0x48, 0x63, 0xf6, 0x0f, 0xb6, 0x86, 0xc0, 0x61, 0xa3, 0x82, 0x3d, 0xff, 0, 0, 0,
        ];
        assert_eq!(tables_used(&code), [0xffff_ffff_82a3_61c0]);
        // The same by way of r12: one more byte.
        let code = [0x41, 0x0f, 0xbe, 0x84, 0x24, 0xc0, 0x61, 0xa3, 0x82];
        assert_eq!(tables_used(&code), [0xffff_ffff_82a3_61c0]);
    }

    #[test]
    fn code_that_ends_within_an_instruction_is_no_trouble() {
        assert_eq!(tables_used(&[0x0f, 0xb6, 0x86, 0xc0]), [0_u64; 0]);
        assert_eq!(tables_used(&[0x0f, 0xb6]), [0_u64; 0]);
    }
}
