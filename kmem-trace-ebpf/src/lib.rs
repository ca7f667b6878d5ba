//! The wire: what crosses between the BPF programs and userspace, defined once for both.
//!
//! [`record`] is what is streamed over the ring buffer (and kept in recorded files), [`totals`]
//! and [`sums`] what the programs add up in maps, [`config`] the constants that userspace fills in
//! before the programs are loaded, [`selfcheck`], [`words`] and [`pairs`] what programs answer that are
//! run on request, [`handed`] what one of them hands out. Everything is `#[repr(C)]`, without unnamed
//! padding, in the byte order of the machine. No behaviour lives here.
#![no_std]

pub mod config;
pub mod handed;
pub mod pairs;
pub mod record;
pub mod selfcheck;
pub mod sums;
pub mod totals;
pub mod words;

/// Version of every layout in this crate; a recorded file carries it in its header.
pub const WIRE_VERSION: u32 = 3;

#[cfg(feature = "user")]
mod plain {
    use crate::{
        config::Config,
        pairs::ProgramMembers,
        sums::{Cache, Origin, SlabKey, SlabSums},
        totals::{Place, Totals},
        words::Members,
    };

    // SAFETY: `repr(C)` integers without padding; every bit pattern is a value.
    unsafe impl aya::Pod for Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Totals {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Place {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Members {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ProgramMembers {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SlabKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SlabSums {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Cache {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Origin {}
}
