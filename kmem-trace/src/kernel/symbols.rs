//! Which functions and variables the kernel has: `/proc/kallsyms`, and which functions may be
//! probed: tracefs' `available_filter_functions`.
//!
//! Both files have 100 000 lines and more, so they are read in one pass for a given set of names,
//! without an allocation per line. Not here: prototypes (see `btf`), and which names somebody wants.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
};

use rustc_hash::{FxHashMap, FxHashSet};

use super::file::{self, FileError, LineError};

/// What kallsyms says about the names asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols {
    /// By name; several entries where static functions of different files share it.
    pub found: HashMap<String, Vec<Symbol>>,
    /// By name asked for: what the compiler made beside or instead of it (`name.part.0`,
    /// `name.constprop.0`, `name.isra.0`, `name.cold`, `name.llvm.123`).
    pub twins: HashMap<String, Vec<String>>,
    /// All addresses are zero: `kernel.kptr_restrict`, or no `CAP_SYSLOG`. Names still count.
    pub addresses_hidden: bool,
    /// Addresses found by other means than the list.
    learned: HashMap<String, u64>,
}

/// One line of kallsyms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// 0 where [`Symbols::addresses_hidden`].
    pub address: u64,
    /// Bytes to the next symbol, padding included; 0 where addresses are hidden, or it is the last.
    pub bytes: u64,
    /// As nm shows it: `T`/`t` text, `D`/`d` data, `B`/`b` zeroed data, lower case for static.
    pub kind: char,
    /// The module it is in; `None` for the kernel itself.
    pub module: Option<String>,
}

impl Symbol {
    /// Whether it is code, and not data.
    pub fn is_function(&self) -> bool {
        u8::try_from(self.kind).is_ok_and(is_code)
    }
}

impl Symbols {
    /// Whether there is a function of exactly that name.
    pub fn has_function(&self, name: &str) -> bool {
        self.found
            .get(name)
            .is_some_and(|symbols| symbols.iter().any(Symbol::is_function))
    }

    /// A function of which there is only one.
    pub fn function(&self, name: &str) -> Option<&Symbol> {
        match self.found.get(name).map(Vec::as_slice) {
            Some([only]) if only.is_function() && !self.addresses_hidden => Some(only),
            _ => None,
        }
    }

    /// Notes an address that the list does not show.
    pub fn learn(&mut self, name: &str, address: u64) {
        self.learned.insert(name.to_owned(), address);
    }

    /// Address of a symbol of which there is only one.
    pub fn address(&self, name: &str) -> Option<u64> {
        if let Some(learned) = self.learned.get(name) {
            return Some(*learned);
        }
        match self.found.get(name).map(Vec::as_slice) {
            Some([only]) if !self.addresses_hidden => Some(only.address),
            _ => None,
        }
    }
}

/// Where the kernel lists its symbols.
pub const KALLSYMS: &str = "/proc/kallsyms";

/// Reads [`KALLSYMS`] for the names in `wanted`.
///
/// # Errors
/// [`FileError`].
pub fn kallsyms(wanted: &[&str]) -> Result<Symbols, FileError> {
    file::read_as(Path::new(KALLSYMS), |bytes| parse_kallsyms(bytes, wanted))
}

/// Picks the names in `wanted` from lines such as `ffffffff8168f390 t try_charge_memcg` and
/// `ffffffffc0201000 t nf_init\t[nf_tables]`.
///
/// # Errors
/// [`LineError`] for a line that is not address, kind and name.
pub fn parse_kallsyms(bytes: &[u8], wanted: &[&str]) -> Result<Symbols, LineError> {
    // By the name up to its first dot, so that one look-up a line serves both name and twins.
    let mut stems: FxHashMap<&[u8], Vec<&str>> = FxHashMap::default();
    for name in wanted {
        let all = stems.entry(stem(name.as_bytes())).or_default();
        if !all.contains(name) {
            all.push(name);
        }
    }
    let mut symbols = Symbols::default();
    // Of all symbols of code, for what comes after those that are wanted.
    let mut addresses = Vec::new();
    let (mut any_line, mut any_address) = (false, false);
    for (number, line) in file::lines(bytes) {
        let wrong = || LineError::new(number, "not a line of address, kind and name");
        let Line {
            address,
            kind,
            name,
            module,
        } = split(line).ok_or_else(wrong)?;
        let address = hexadecimal(address).ok_or_else(wrong)?;
        any_line = true;
        any_address |= address != 0;
        if is_code(kind) {
            addresses.push(address);
        }
        let Some(wanted) = stems.get(stem(name)) else {
            continue;
        };
        for of in wanted {
            if of.as_bytes() == name {
                let found = symbols.found.entry((*of).to_owned()).or_default();
                found.push(Symbol {
                    address,
                    bytes: 0,
                    kind: char::from(kind),
                    module: module.map(file::text),
                });
            } else if of.as_bytes() == stem(name) {
                let twins = symbols.twins.entry((*of).to_owned()).or_default();
                let twin = file::text(name);
                if !twins.contains(&twin) {
                    twins.push(twin);
                }
            }
        }
    }
    symbols.addresses_hidden = any_line && !any_address;
    addresses.sort_unstable();
    for symbol in symbols.found.values_mut().flatten() {
        let next = addresses.partition_point(|address| *address <= symbol.address);
        symbol.bytes = addresses.get(next).map_or(0, |next| next - symbol.address);
    }
    Ok(symbols)
}

/// Whether a symbol of that kind is code, and not data.
pub(super) fn is_code(kind: u8) -> bool {
    matches!(kind, b't' | b'T' | b'w' | b'W')
}

/// A hexadecimal number of at most 16 digits, and nothing else.
pub(super) fn hexadecimal(digits: &[u8]) -> Option<u64> {
    if !(1..=16).contains(&digits.len()) {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(number << 4 | u64::from(digit))
    })
}

/// The name without what the compiler added.
fn stem(name: &[u8]) -> &[u8] {
    let end = memchr::memchr(b'.', name);
    &name[..end.unwrap_or(name.len())]
}

/// A line of kallsyms, still bytes.
pub(super) struct Line<'a> {
    pub(super) address: &'a [u8],
    pub(super) kind: u8,
    pub(super) name: &'a [u8],
    module: Option<&'a [u8]>,
}

pub(super) fn split(line: &[u8]) -> Option<Line<'_>> {
    let blank = memchr::memchr(b' ', line)?;
    let (address, rest) = line.split_at(blank);
    let [b' ', kind, b' ', rest @ ..] = rest else {
        return None;
    };
    let end = memchr::memchr2(b'\t', b' ', rest);
    let (name, rest) = rest.split_at(end.unwrap_or(rest.len()));
    if address.is_empty() || name.is_empty() {
        return None;
    }
    let module = rest
        .trim_ascii()
        .strip_prefix(b"[")
        .and_then(|module| module.strip_suffix(b"]"));
    Some(Line {
        address,
        kind: *kind,
        name,
        module,
    })
}

/// Reads `available_filter_functions` in the tracefs mounted at `tracefs`: those of `wanted` that
/// ftrace can hook.
///
/// # Errors
/// [`FileError`]; [`FileError::is_denied`] where the kernel refuses it, even to root.
pub fn traceable(tracefs: &Path, wanted: &[&str]) -> Result<BTreeSet<String>, FileError> {
    let bytes = file::read(&tracefs.join("available_filter_functions"))?;
    Ok(parse_traceable(&bytes, wanted))
}

/// Picks the names in `wanted` from lines such as `do_one_initcall` and `nft_do_chain [nf_tables]`.
pub fn parse_traceable(bytes: &[u8], wanted: &[&str]) -> BTreeSet<String> {
    let wanted: FxHashSet<&[u8]> = wanted.iter().map(|name| name.as_bytes()).collect();
    file::lines(bytes)
        .filter_map(|(_, line)| file::words(line).next())
        .filter(|name| wanted.contains(name))
        .map(file::text)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// From a 6.18 kernel, with twins as Debian's 5.10 has them.
    const KALLSYMS: &[u8] = b"\
ffffffff81000000 T _text
ffffffff8168f390 t try_charge_memcg
ffffffff8168fa90 t obj_cgroup_charge_pages
ffffffff8168fa00 t mem_cgroup_write
ffffffff8168fb00 t mem_cgroup_write
ffffffff8168fc00 t try_charge_memcg.part.0
ffffffff8168fd00 t try_charge_memcg.cold
ffffffff83b266f0 D memory_cgrp_subsys
ffffffffc0201000 t ftrace_trampoline\t[__builtin__ftrace]
";

    #[test]
    fn a_learned_address_counts_where_the_list_has_none() {
        let mut symbols = Symbols::default();
        assert_eq!(symbols.address("memory_cgrp_subsys"), None);
        symbols.learn("memory_cgrp_subsys", 7);
        assert_eq!(symbols.address("memory_cgrp_subsys"), Some(7));
    }

    #[test]
    fn only_the_names_asked_for_are_kept() {
        let symbols = parse_kallsyms(
            KALLSYMS,
            &[
                "try_charge_memcg",
                "memory_cgrp_subsys",
                "mem_cgroup_write",
                "ftrace_trampoline",
                "no",
            ],
        )
        .expect("valid");
        assert_eq!(symbols.found.len(), 4);
        assert_eq!(
            symbols.address("memory_cgrp_subsys"),
            Some(0xffff_ffff_83b2_66f0)
        );
        assert!(!symbols.has_function("memory_cgrp_subsys"));
        assert!(symbols.has_function("try_charge_memcg"));
        assert_eq!(symbols.found["mem_cgroup_write"].len(), 2);
        assert_eq!(symbols.address("mem_cgroup_write"), None);
        assert_eq!(
            symbols.found["ftrace_trampoline"][0].module.as_deref(),
            Some("__builtin__ftrace")
        );
        assert!(!symbols.addresses_hidden);
    }

    #[test]
    fn what_the_compiler_split_off_is_listed_apart() {
        let symbols = parse_kallsyms(KALLSYMS, &["try_charge_memcg"]).expect("valid");
        assert_eq!(symbols.found["try_charge_memcg"].len(), 1);
        assert_eq!(
            symbols.twins["try_charge_memcg"],
            ["try_charge_memcg.part.0", "try_charge_memcg.cold"]
        );
    }

    #[test]
    fn a_function_that_only_lives_on_as_a_twin_is_not_found() {
        let symbols = parse_kallsyms(b"ffffffff81000000 t f.constprop.0", &["f"]).expect("valid");
        assert!(!symbols.has_function("f"));
        assert_eq!(symbols.twins["f"], ["f.constprop.0"]);
    }

    #[test]
    fn zeroed_addresses_are_a_fact_and_not_an_address() {
        let hidden = b"0000000000000000 T _text\n0000000000000000 t try_charge\n";
        let symbols = parse_kallsyms(hidden, &["try_charge"]).expect("valid");
        assert!(symbols.addresses_hidden && symbols.has_function("try_charge"));
        assert_eq!(symbols.address("try_charge"), None);
        assert!(!parse_kallsyms(b"", &["x"]).expect("empty").addresses_hidden);
    }

    #[test]
    fn a_line_of_something_else_is_refused_with_its_number() {
        for (bytes, line) in [
            (&b"ffffffff81000000 T _text\nhello\n"[..], 2),
            (b"ffffffff81000000 T", 1),
            (b"ffffffff81000000 TT f", 1),
            (b"fffffffffffffffff T f", 1),
            (b"+fffffff81000000 T f", 1),
            (b"\xff\xfe T f", 1),
        ] {
            assert_eq!(parse_kallsyms(bytes, &["f"]).map_err(|e| e.line), Err(line));
        }
    }

    #[test]
    fn traceable_functions_are_picked_with_their_module_taken_off() {
        let file = b"do_one_initcall\nnft_do_chain [nf_tables]\ntry_charge\n";
        let found = parse_traceable(file, &["nft_do_chain", "try_charge", "do_one"]);
        assert_eq!(
            found.iter().collect::<Vec<_>>(),
            ["nft_do_chain", "try_charge"]
        );
    }

    #[test]
    fn the_running_kernel_has_page_counters_or_none_of_their_functions() {
        let symbols =
            kallsyms(&["page_counter_charge", "page_counter_uncharge"]).expect("readable");
        assert_eq!(
            symbols.has_function("page_counter_charge"),
            symbols.has_function("page_counter_uncharge")
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_kallsyms(&bytes, &["f"]);
            parse_traceable(&bytes, &["f"]);
        }

        #[test]
        fn nor_do_lines_that_look_almost_right(text in "([0-9a-f]{0,17} ?[tTdD]{0,2} ?[f.]{0,4}\t?\\[?m?\\]?\n?){0,4}") {
            let _ = parse_kallsyms(text.as_bytes(), &["f"]);
        }
    }
}
