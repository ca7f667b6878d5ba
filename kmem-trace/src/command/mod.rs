//! The subcommands: each strings the rooms together, and owns what they do not: files, clocks,
//! signals, processes.

pub mod cli;
pub mod demo;
pub mod doctor;
pub mod enable;
pub mod explain;
pub mod made;
pub mod names;
mod output;
pub mod privilege;
pub mod run;
pub mod session;
mod stopping;
pub mod trace;
pub mod wrong_use;
