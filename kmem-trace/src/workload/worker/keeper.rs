//! The first process of a group: goes into the group's cgroup, makes its network namespace,
//! forks servers and clients into both, then holds the group's memory and page cache.

use std::fs;

use nix::{
    sys::wait::{WaitStatus, waitpid},
    unistd::pipe,
};

use super::{
    EXIT_PARTNER_GONE, EXIT_REPORTED, Fault, connections,
    memory::{self, Made},
    network, start,
    supervisor::fate,
};
use crate::workload::{
    groups,
    message::{Channel, Order, Report},
};

pub fn run(channel: &Channel, order: &Order, group: u32) -> Result<(), Fault> {
    let layout = &order.layout;
    let procs = order.tree.group(group).join("cgroup.procs");
    // "0" is the writer itself. From here on the group pays.
    fs::write(&procs, "0").map_err(Fault::doing(&format!("enter {}", procs.display())))?;
    let first_worker = group * layout.workers_per_group();
    let children = if layout.pairs.is_empty() {
        Vec::new()
    } else {
        network::own_network().map_err(Fault::doing("make a network namespace"))?;
        start_pairs(channel, &layout.pairs, group, first_worker)?
    };
    // After the forks, or the children would copy the page tables.
    let mut made = Made::default();
    let mut tell = |bytes| {
        channel.offer(&Report::Progress {
            worker: first_worker,
            connections: 0,
            bytes,
        });
    };
    memory::anon(&mut made, layout.anon_bytes, &mut tell)
        .map_err(Fault::doing("make anonymous memory"))?;
    memory::page_cache(&mut made, layout.file_bytes, &layout.file_dir, &mut tell).map_err(
        Fault::doing(&format!("write a file in {}", layout.file_dir.display())),
    )?;
    channel
        .send(&Report::Ready {
            worker: first_worker,
            connections: 0,
            bytes: made.bytes(),
        })
        .map_err(Fault::doing("report"))?;
    watch(&children)
}

/// A child and what to call it: (process id, "server 0").
type Child = (nix::unistd::Pid, String);

fn start_pairs(
    channel: &Channel,
    pairs: &[u64],
    group: u32,
    keeper: u32,
) -> Result<Vec<Child>, Fault> {
    let mut children = Vec::new();
    let mut worker = keeper;
    for (pair, &count) in pairs.iter().enumerate() {
        let listener = connections::listen(pair).map_err(Fault::doing("listen"))?;
        let (credit_in, credit_out) =
            pipe().map_err(|errno| Fault::doing("make a pipe")(errno.into()))?;
        let fork_error = Fault::doing("fork");
        let mut child = |role: &str, comm, body: &mut dyn FnMut(u32) -> Result<(), Fault>| {
            worker += 1;
            let name = format!("{role} {pair}");
            let who = format!("{name} of {}", groups::name(group));
            let pid = start(channel, comm, &who, || body(worker)).map_err(&fork_error)?;
            children.push((pid, name));
            Ok(())
        };
        // Each end of the pipe must be open in one process only, so that its end is noticed.
        let (mut credit_in, mut credit_out) = (Some(credit_in), Some(credit_out));
        child("server", c"load-server", &mut |worker| {
            drop(credit_in.take());
            connections::serve(channel, worker, &listener, credit_out.take(), count)
        })?;
        drop(credit_out.take());
        child("client", c"load-client", &mut |worker| {
            connections::connect(channel, worker, &listener, credit_in.take(), count)
        })?;
    }
    Ok(children)
}

/// Returns only when a child ended.
fn watch(children: &[Child]) -> Result<(), Fault> {
    let mut left = children.len();
    while left > 0 {
        let status = waitpid(None, None).map_err(|e| Fault::doing("wait")(e.into()))?;
        left -= 1;
        match status {
            WaitStatus::Exited(_, EXIT_PARTNER_GONE) => {}
            // It reported itself; the supervisor only needs to know that it is over.
            WaitStatus::Exited(_, EXIT_REPORTED) => return Err(Fault::Reported),
            status => {
                let name = children
                    .iter()
                    .find(|(pid, _)| Some(*pid) == status.pid())
                    .map_or("a child", |(_, name)| name);
                return Err(Fault::Failed(format!(
                    "lost {name}, which {}",
                    fate(status)
                )));
            }
        }
    }
    super::hold()
}
