//! Does the program keep its word on a real kernel? Runs as root inside a machine of
//! `cargo xtask vm`, drives the program from outside and reads its JSON Lines; elsewhere every
//! test says why it does nothing.

#[path = "../support/mod.rs"]
mod support;

mod contract;
mod ending;
mod exact;
mod kinds;
mod life;
mod lockdown;
mod recording;
mod refusals;
#[path = "../slab/attribution.rs"]
mod slab;
