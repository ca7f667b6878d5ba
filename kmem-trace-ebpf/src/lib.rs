//! The wire format: what the BPF programs write and userspace reads.
#![no_std]
