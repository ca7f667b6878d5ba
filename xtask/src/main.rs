//! The chores of the repository, one subcommand each.

fn main() {}
