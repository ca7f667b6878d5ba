//! Removes cgroups once the program that made them is gone, however it went: nobody else is left to
//! do it after a `kill -9`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use std::os::unix::process::CommandExt as _;

use super::{ARGUMENT, SWEEP};

/// Between two looks at a cgroup that is still in use.
const PAUSE: Duration = Duration::from_millis(100);

/// Starts one for directories that are yet to be made, outermost first. Its standard input is what
/// it waits on: it begins when nobody holds the other end any more.
///
/// # Errors
/// From the system, where no process can be started.
pub fn start(dirs: &[PathBuf]) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .args([ARGUMENT, SWEEP])
        .args(dirs)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C and the like are for those who have something to end.
        .process_group(0)
        .spawn()
}

/// The whole life of one.
pub(super) fn run(dirs: &[PathBuf]) -> io::Result<()> {
    io::copy(&mut io::stdin(), &mut io::sink())?;
    for dir in dirs.iter().rev() {
        while is_in_use(dir) {
            thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// Tries to remove it; a command that outlives its tracer keeps its cgroup to its end.
fn is_in_use(dir: &Path) -> bool {
    fs::remove_dir(dir).is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
}
