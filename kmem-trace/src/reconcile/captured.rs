//! Test data: what the files of one cgroup said on real kernels, in machines of two CPUs.

use super::{
    explain::{Circumstances, Explanation, explain},
    fields::Figures,
};

/// A file of `tests/data/stat`: after a line `== FILE` what stood in that file.
macro_rules! capture {
    ($name:literal) => {
        include_str!(concat!("../../tests/data/stat/", $name, ".txt"))
    };
}
pub(crate) use capture;

/// The machines, with a kernel that does not flush.
pub const QUIET: Circumstances = Circumstances {
    page_bytes: 4096,
    online_cpus: 2,
    cached_per_cpu: 1,
    batched_per_cpu: 105,
    cgroups: 2,
    flushed: false,
    skew_bytes: 0,
};

fn figures_of(text: &'static str) -> Vec<(&'static str, u64)> {
    let mut file = "";
    let mut found = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("== "), line.split_once(' ')) {
            (Some(name), _) => file = name,
            (None, Some((name, value))) => found.push((name, value.parse().expect("a number"))),
            (None, None) => found.push((file, line.parse().expect("a number"))),
        }
    }
    found
}

/// Explains a captured usage.
pub fn explained(
    figures: Figures,
    text: &'static str,
    circumstances: &Circumstances,
) -> Explanation {
    let mut found = figures_of(text);
    let usage = found
        .iter()
        .position(|(name, _)| matches!(*name, "memory.usage_in_bytes" | "memory.current"))
        .map(|at| found.remove(at).1);
    explain(figures, usage, found, circumstances)
}
