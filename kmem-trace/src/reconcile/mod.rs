//! The ledger against the kernel's own figures: explained, bound, residual. Pure.

pub mod breakdown;
#[cfg(test)]
pub(crate) mod captured;
pub mod charged;
pub mod coverage;
pub mod explain;
pub mod fields;
pub mod growth;
pub mod kinds;
pub mod limit;
pub mod overhead;
pub mod report;
pub mod slab;
pub mod usage;
pub mod verdict;
