//! What this kernel and this process allow, in words: the page to paste into a bug report.
//!
//! Pure: facts in, page out. Gathering the facts is the command's business, setting the page the
//! view's.
//!
//! - [`page`]: all of the page, as it goes into JSON.
//! - [`accounting`]: how this kernel accounts memory, from its types and symbols.
//! - [`answers`]: our answers, each as good as the roles and facts it stands on.
//! - [`problems`]: what stands in the way, and the command that mends it.

pub mod accounting;
pub mod answers;
pub mod page;
pub mod problems;

#[cfg(test)]
mod problems_tests;
#[cfg(test)]
pub(crate) mod samples;
