//! Figures → screen or JSON Lines. Only formatting lives here: a number is computed once, before.

pub mod doctor;
pub mod event;
pub mod explain;
pub mod json;
pub mod lost;
pub mod name;
pub mod size;
pub mod slab;
pub mod table;
pub mod wrap;
