//! What the tests that drive the program have in common: cgroups that go away with their guard,
//! loads in them, the program under test with the lines it prints, and what this machine is.
//!
//! Not here: anything that a test asserts about figures.

// Each test target uses its own part of this room.
#![allow(dead_code)]

pub mod bpf;
pub mod cgroup;
pub mod lines;
pub mod load;
pub mod machine;
pub mod tracer;

use std::{
    thread,
    time::{Duration, Instant},
};

/// Whether `check` holds before long.
pub fn soon(patience: Duration, mut check: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if check() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
