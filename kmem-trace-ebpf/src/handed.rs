//! Elements of the totals' arrays, handed out and cleared by a program that is run on request, where
//! the kernel maps no arrays (before 5.5): the request, and where the answer is.
//!
//! The program is a classifier, the only kind that both can be run on request (since 4.12) and writes
//! to what it was given: a packet, in which the request stands after the addresses that every packet
//! begins with, and the elements after the request.

/// The array of places; the others by their names in the object.
pub const CGROUPS: u32 = 0;
pub const TOTALS: u32 = 1;
pub const TALLY: u32 = 2;
/// Not to hand out, but to clear the totals at place `first`: `count` copies from `copy` on.
pub const CLEAR: u32 = 3;
/// Place `first` is free again.
pub const GIVE_BACK: u32 = 4;

/// Where the request stands in the packet: after its addresses and its kind.
pub const REQUEST_AT: usize = 16;
/// Where the elements stand in the answer.
pub const ELEMENTS_AT: usize = REQUEST_AT + size_of::<Request>();
/// Elements that one run hands out at most, and bytes of them: the kernel takes packets of less
/// than a page.
pub const MOST: u32 = 128;
pub const MOST_BYTES: usize = 3072;

/// What the program returns where it did all that was asked.
pub const HANDED_OUT: u32 = 1;

/// Which elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(feature = "user", derive(zerocopy::IntoBytes, zerocopy::Immutable))]
pub struct Request {
    /// One of [`CGROUPS`], [`TOTALS`], [`TALLY`], [`CLEAR`], [`GIVE_BACK`].
    pub what: u32,
    pub first: u32,
    pub count: u32,
    pub copy: u32,
}

const _: () = assert!(size_of::<Request>() == 16);
