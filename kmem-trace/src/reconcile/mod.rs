//! The ledger against the kernel's own figures: explained, bound, residual. Pure.

pub mod breakdown;
pub mod limit;
pub mod report;
pub mod usage;
