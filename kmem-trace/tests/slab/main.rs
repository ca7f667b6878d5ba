//! Is slab put down to the right cgroup, with the right cause? On the machine at hand, as root;
//! `tests/kernel` runs the same on kernels of our own.

#[path = "../support/mod.rs"]
mod support;

mod attribution;
mod causes;
mod contexts;
mod coverage;
mod dead;
mod events;
mod sockets;
