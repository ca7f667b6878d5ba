//! From the programs to records: batches of bytes, decoded in place; the same for recorded files.

pub mod decode;
pub mod perf;
pub mod recording;
pub mod rings;
pub mod source;
mod turns;
