//! A load from the caller's side: start it, watch it grow, stop it. What is started is stopped
//! when [`Running`] is dropped.

use std::{
    fmt, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    Layout, Plan, WorkloadError,
    groups::{Lock, Tree},
    message::{Channel, Order, Report},
    worker,
};

/// How to start a load.
#[derive(Clone, Debug)]
pub struct Workload {
    plan: Plan,
    program: PathBuf,
}

/// How far a load is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Connections accepted, of all.
    pub connections: u64,
    pub connections_total: u64,
    /// Bytes of anonymous memory and page cache made, of all.
    pub bytes: u64,
    pub bytes_total: u64,
    /// Processes that have done their share, of all.
    pub workers_ready: u32,
    pub workers: u32,
}

/// A load that stands, or is being built up.
#[derive(Debug)]
pub struct Running {
    tree: Tree,
    /// `None` once stopped.
    link: Option<(Channel, Child)>,
    /// What each worker reported last.
    shares: Vec<Share>,
    totals: Progress,
    notes: Vec<String>,
    failure: Option<String>,
    _lock: Lock,
}

#[derive(Clone, Copy, Debug, Default)]
struct Share {
    connections: u64,
    bytes: u64,
    ready: bool,
}

impl Workload {
    /// `plan` as the program that runs now would carry it out.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        Self {
            plan,
            program: "/proc/self/exe".into(),
        }
    }

    /// Another program whose `main` hands over to [`worker::main`]; for callers that are not
    /// kmem-trace itself, such as tests.
    #[must_use]
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = path.into();
        self
    }

    /// Checks the plan, makes the cgroups, starts the processes. Returns as soon as they run;
    /// see [`Running::wait_ready`].
    ///
    /// # Errors
    /// The plan does not fit, another load is there, or the kernel refuses. Nothing stays then.
    pub fn start(&self) -> Result<Running, WorkloadError> {
        let layout = self.plan.check()?;
        let (tree, lock, notes) =
            Tree::create(&self.plan.parent, self.plan.hierarchy, layout.groups)?;
        let totals = Progress {
            connections_total: layout.connections(),
            bytes_total: layout.bytes(),
            workers: layout.workers(),
            ..Progress::default()
        };
        let shares = vec![Share::default(); layout.workers() as usize];
        match self.spawn(layout, &tree) {
            Ok(link) => Ok(Running {
                tree,
                link: Some(link),
                shares,
                totals,
                notes,
                failure: None,
                _lock: lock,
            }),
            Err(error) => {
                tree.remove();
                Err(WorkloadError::Spawn(error))
            }
        }
    }

    fn spawn(&self, layout: Layout, tree: &Tree) -> io::Result<(Channel, Child)> {
        let (ours, theirs) = Channel::pair()?;
        let mut supervisor = Command::new(&self.program)
            .arg0("kmem-trace")
            .args([worker::ARGUMENT, worker::SUPERVISE])
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::null())
            // Ctrl-C is for the caller, who then ends the load in good order.
            .process_group(0)
            .spawn()?;
        let order = Order {
            layout,
            tree: tree.clone(),
        };
        if let Err(error) = ours.send(&order) {
            drop(ours);
            let _ = supervisor.wait();
            return Err(error);
        }
        Ok((ours, supervisor))
    }
}

impl Running {
    /// Worth telling the user: leftovers removed, figures that will not add up.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The parent cgroup.
    #[must_use]
    pub fn parent(&self) -> &Path {
        self.tree.parent()
    }

    /// The cgroups of the groups.
    pub fn groups(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.tree.groups()
    }

    /// Process id of the supervisor, which runs in the caller's cgroup; `None` once stopped.
    #[must_use]
    pub fn supervisor_pid(&self) -> Option<u32> {
        self.link.as_ref().map(|(_, child)| child.id())
    }

    /// How far it is, without waiting.
    ///
    /// # Errors
    /// [`WorkloadError::Worker`] when a process failed or died; all of the load ends then, and
    /// its cgroups are removed.
    pub fn progress(&mut self) -> Result<Progress, WorkloadError> {
        while self.failure.is_none() {
            let Some((channel, _)) = &self.link else {
                break;
            };
            match channel.try_receive::<Report>() {
                Ok(Some(report)) => self.take(report),
                Ok(None) => break,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.failure = Some("its supervisor ended by itself".into());
                }
                Err(error) => {
                    self.failure = Some(format!("its supervisor is out of reach: {error}"))
                }
            }
        }
        if let Some(failure) = self.failure.clone() {
            self.finish();
            return Err(WorkloadError::Worker(failure));
        }
        let mut progress = self.totals;
        for share in &self.shares {
            progress.connections += share.connections;
            progress.bytes += share.bytes;
            progress.workers_ready += u32::from(share.ready);
        }
        Ok(progress)
    }

    /// Waits until all is made.
    ///
    /// # Errors
    /// As [`Running::progress`]; [`WorkloadError::NotReady`] when it takes longer than `patience`.
    pub fn wait_ready(&mut self, patience: Duration) -> Result<(), WorkloadError> {
        let deadline = Instant::now() + patience;
        loop {
            let progress = self.progress()?;
            if progress.is_ready() {
                return Ok(());
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                let (waited_s, progress) = (patience.as_secs(), progress.to_string());
                return Err(WorkloadError::NotReady { waited_s, progress });
            }
            if let Some((channel, _)) = &self.link {
                channel.wait(rest).map_err(WorkloadError::Spawn)?;
            }
        }
    }

    /// Ends all processes and removes the cgroups; returns when both is done.
    ///
    /// # Errors
    /// [`WorkloadError::LeftBehind`] names what could not be removed.
    pub fn stop(mut self) -> Result<(), WorkloadError> {
        let left = self.finish();
        if left.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = left.iter().map(|dir| dir.display().to_string()).collect();
        Err(WorkloadError::LeftBehind(format!(
            "these cgroups are still busy: {}; remove them with rmdir once they are empty",
            names.join(" ")
        )))
    }

    fn take(&mut self, report: Report) {
        let (worker, share) = match report {
            Report::Progress {
                worker,
                connections,
                bytes,
            } => (
                worker,
                Share {
                    connections,
                    bytes,
                    ready: false,
                },
            ),
            Report::Ready {
                worker,
                connections,
                bytes,
            } => (
                worker,
                Share {
                    connections,
                    bytes,
                    ready: true,
                },
            ),
            Report::Failed(why) => return self.failure = Some(why),
        };
        if let Some(slot) = self.shares.get_mut(worker as usize) {
            *slot = share;
        }
    }

    /// Closing the socket tells the supervisor to end it all. Removing again covers one that
    /// could not, because it was killed.
    fn finish(&mut self) -> Vec<PathBuf> {
        let Some((channel, mut supervisor)) = self.link.take() else {
            return Vec::new();
        };
        drop(channel);
        if let Err(error) = supervisor.wait() {
            log::warn!("cannot wait for the load's supervisor: {error}");
        }
        self.tree.remove()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for dir in self.finish() {
            log::warn!(
                "{} is still busy; remove it with rmdir once it is empty",
                dir.display()
            );
        }
    }
}

impl Progress {
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.workers_ready == self.workers
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "{} of {} connections, {} of {} MiB, {} of {} processes",
            self.connections,
            self.connections_total,
            self.bytes >> 20,
            self.bytes_total >> 20,
            self.workers_ready,
            self.workers
        )
    }
}
