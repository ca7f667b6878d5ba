//! From the ring to records: batches of bytes, decoded in place; the same for recorded files.

pub mod decode;
pub mod recording;
pub mod ring;
