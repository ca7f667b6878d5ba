//! What this kernel is and says: parsers of its files. Bytes in, typed values or an error with
//! file and line out.
//!
//! Lives here: BTF, symbols, tracefs, the memory cgroup file system, `/proc`, lockdown and
//! capabilities. Does not live here: BPF, clocks, printing, and every decision about what the
//! facts mean for tracing. Nothing here asks for the kernel's version.

pub mod btf;
pub mod callsite;
pub mod cgroupfs;
pub mod file;
pub mod proc;
pub mod security;
pub mod symbols;
pub mod text;
pub mod tracefs;
