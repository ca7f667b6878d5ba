//! Kernels that are not here: the ones before 5.10, whose functions a module of ours has, and the
//! ones nobody has seen yet, made by striking the best candidates out of the hook table.
//!
//! Runs as root inside a machine of `cargo xtask vm`, as `cargo xtask matrix` does it; elsewhere
//! every test says why it does nothing.

#[path = "../support/mod.rs"]
mod support;

mod module;
mod old;
mod struck;
mod types;
mod without;
