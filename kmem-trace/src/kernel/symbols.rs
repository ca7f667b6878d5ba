//! tmp
use std::collections::{HashMap, HashSet};
use std::path::Path;
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    found: HashMap<String, u64>,
    twins: HashMap<String, Vec<String>>,
    pub addresses_hidden: bool,
}
impl Symbols {
    pub fn contains(&self, n: &str) -> bool {
        self.found.contains_key(n)
    }
    pub fn address(&self, n: &str) -> Option<u64> {
        self.found.get(n).copied().filter(|a| *a != 0)
    }
    pub fn twins(&self, n: &str) -> &[String] {
        self.twins.get(n).map_or(&[], Vec::as_slice)
    }
}
pub fn kallsyms(names: &[&str]) -> std::io::Result<Symbols> {
    let text = std::fs::read_to_string("/proc/kallsyms")?;
    let want: HashSet<&str> = names.iter().copied().collect();
    let mut s = Symbols {
        addresses_hidden: true,
        ..Symbols::default()
    };
    for line in text.lines() {
        let mut w = line.split_whitespace();
        let (Some(a), Some(_), Some(n)) = (w.next(), w.next(), w.next()) else {
            continue;
        };
        let base = n.split('.').next().unwrap_or(n);
        if want.contains(n) {
            let a = u64::from_str_radix(a, 16).unwrap_or(0);
            if a != 0 {
                s.addresses_hidden = false;
            }
            s.found.insert(n.to_owned(), a);
        } else if want.contains(base) {
            s.twins
                .entry(base.to_owned())
                .or_default()
                .push(n.to_owned());
        }
    }
    Ok(s)
}
pub fn traceable(root: &Path, names: &[&str]) -> std::io::Result<HashSet<String>> {
    let text = std::fs::read_to_string(root.join("available_filter_functions"))?;
    let want: HashSet<&str> = names.iter().copied().collect();
    Ok(text
        .lines()
        .filter_map(|l| l.split_whitespace().next())
        .filter(|n| want.contains(n))
        .map(str::to_owned)
        .collect())
}
