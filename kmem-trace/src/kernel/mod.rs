//! What this kernel is and says: parsers of its files. Bytes in, typed values out.
pub mod btf;
pub mod cgroupfs;
pub mod proc;
pub mod security;
pub mod symbols;
pub mod tracefs;
