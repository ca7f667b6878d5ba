//! The ledger: what was charged to whom, from records and kernel-side totals. Pure: it owns no
//! file, no clock and no terminal.

pub mod book;
pub mod slab;
pub mod tree;
