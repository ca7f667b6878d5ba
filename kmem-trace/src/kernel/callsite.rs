//! Addresses → `function+offset`, from `/proc/kallsyms`.
//!
//! Only what is asked for is kept: one pass over the file for a handful of addresses.

use std::{collections::HashMap, path::Path};

use super::file::{self, FileError};

/// `function+0x1c` for each address; one that lies below every symbol, or in a kernel that hides
/// its addresses, is absent.
///
/// # Errors
/// Where the file cannot be read.
pub fn names(addresses: &[u64]) -> Result<HashMap<u64, String>, FileError> {
    if addresses.is_empty() {
        return Ok(HashMap::new());
    }
    Ok(parse(&file::read(Path::new("/proc/kallsyms"))?, addresses))
}

/// The same from the file's bytes. Lines that are no symbols are passed over.
pub fn parse(bytes: &[u8], addresses: &[u64]) -> HashMap<u64, String> {
    // For each address the highest code symbol that is not above it.
    let mut best: HashMap<u64, (u64, &[u8])> = HashMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let mut words = line
            .split(|byte| *byte == b' ' || *byte == b'\t')
            .filter(|word| !word.is_empty());
        let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        if !matches!(kind, b"t" | b"T" | b"w" | b"W") {
            continue;
        }
        let Some(start) = std::str::from_utf8(address)
            .ok()
            .and_then(|text| u64::from_str_radix(text, 16).ok())
        else {
            continue;
        };
        if start == 0 {
            continue;
        }
        for wanted in addresses {
            if start <= *wanted && best.get(wanted).is_none_or(|(found, _)| *found < start) {
                best.insert(*wanted, (start, name));
            }
        }
    }
    best.into_iter()
        .map(|(address, (start, name))| {
            (
                address,
                format!("{}+{:#x}", String::from_utf8_lossy(name), address - start),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &[u8] = b"ffffffff81000000 T _text\n\
        ffffffff81000100 t sk_prot_alloc\n\
        ffffffff81000180 d some_data\n\
        ffffffff81000200 T sk_clone_lock\t[net]\n\
        rubbish\n";

    #[test]
    fn an_address_belongs_to_the_function_that_begins_before_it() {
        let found = parse(
            FILE,
            &[0xffff_ffff_8100_01c0, 0xffff_ffff_8100_0200, 0x1000],
        );
        assert_eq!(found[&0xffff_ffff_8100_01c0], "sk_prot_alloc+0xc0");
        assert_eq!(found[&0xffff_ffff_8100_0200], "sk_clone_lock+0x0");
        assert_eq!(found.get(&0x1000), None);
    }

    #[test]
    fn hidden_addresses_give_no_names() {
        assert!(parse(b"0000000000000000 T _text\n", &[5]).is_empty());
    }
}
