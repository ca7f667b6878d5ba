//! What takes the kernel or us long, done while the caller does something else.

use std::thread::{self, Scope};

/// Work begun in a thread of its own, and waited for; where there can be no thread, done then. If it
/// panics, so do we.
pub fn beside<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: &'scope (impl Fn() -> T + Sync),
) -> impl FnOnce() -> T {
    let thread = thread::Builder::new().spawn_scoped(scope, work);
    move || match thread {
        Ok(thread) => thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        Err(error) => {
            log::debug!("no thread: {error}");
            work()
        }
    }
}
