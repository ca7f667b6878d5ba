//! Addresses → `function+offset`, from `/proc/kallsyms`.

use super::{
    file,
    symbols::{self, Line},
};

/// The code symbols of the running kernel, read once: call sites turn up one by one, and the file is
/// long.
#[derive(Debug, Default)]
pub struct Functions {
    /// Address, and where the name begins and ends in `names`; sorted.
    starts: Vec<(u64, u32, u32)>,
    names: Vec<u8>,
}

impl Functions {
    /// From the file's bytes. Lines that are no code symbols, and hidden addresses, are passed over.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut found = Self::default();
        for (_, line) in file::lines(bytes) {
            let Some(Line {
                address,
                kind,
                name,
                ..
            }) = symbols::split(line)
            else {
                continue;
            };
            if !symbols::is_code(kind) {
                continue;
            }
            let start = symbols::hexadecimal(address).filter(|start| *start != 0);
            let place = u32::try_from(found.names.len());
            let end = u32::try_from(found.names.len() + name.len());
            if let (Some(start), Ok(place), Ok(end)) = (start, place, end) {
                found.starts.push((start, place, end));
                found.names.extend_from_slice(name);
            }
        }
        found.starts.sort_by_key(|(start, _, _)| *start);
        found
    }

    /// `function+0x1c`; `None` below every symbol, or in a kernel that hides its addresses.
    pub fn name(&self, address: u64) -> Option<String> {
        let after = self
            .starts
            .partition_point(|(start, _, _)| *start <= address);
        let found = self.starts[..after].last()?.0;
        // Of several names for one address, the first in the file.
        let first = self.starts.partition_point(|(start, _, _)| *start < found);
        let (start, from, to) = *self.starts.get(first)?;
        let name = self.names.get(from as usize..to as usize)?;
        Some(format!(
            "{}+{:#x}",
            String::from_utf8_lossy(name),
            address - start
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &[u8] = b"ffffffff81000200 T sk_clone_lock\t[net]\n\
        ffffffff81000000 T _text\n\
        ffffffff81000100 t sk_prot_alloc\n\
        ffffffff81000100 t another_name_for_it\n\
        ffffffff81000180 d some_data\n\
        rubbish\n";

    #[test]
    fn an_address_belongs_to_the_function_that_begins_before_it() {
        let functions = Functions::parse(FILE);
        let name = |address| functions.name(address);
        assert_eq!(name(0xffff_ffff_8100_01c0).unwrap(), "sk_prot_alloc+0xc0");
        assert_eq!(name(0xffff_ffff_8100_0200).unwrap(), "sk_clone_lock+0x0");
        assert_eq!(name(0x1000), None);
    }

    #[test]
    fn hidden_addresses_give_no_names() {
        let functions = Functions::parse(b"0000000000000000 T _text\n");
        assert_eq!(functions.name(5), None);
    }
}
