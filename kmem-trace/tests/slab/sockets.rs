//! Sockets born in softirq belong to whom the listening socket belongs to, all of them.

use std::{fs, net::TcpStream, path::Path, thread, time::Duration};

use crate::{
    attribution::{Slab, tracer},
    support::{cgroup::Cgroup, load, machine},
};

/// What a listener of the standard library lets wait.
const WAITING: usize = 100;

/// The port that a process listens on.
fn port_of(pid: u32) -> Option<u16> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let links: Vec<String> = descriptors
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|link| link.to_string_lossy().into_owned())
        .collect();
    let table = fs::read_to_string(Path::new("/proc/net/tcp")).ok()?;
    table.lines().skip(1).find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // 0A: listening; the tenth word is the socket's inode.
        let (local, state, inode) = (words.get(1)?, words.get(3)?, words.get(9)?);
        let ours = *state == "0A" && links.contains(&format!("socket:[{inode}]"));
        let port = local.split_once(':')?.1;
        ours.then(|| u16::from_str_radix(port, 16).ok())?
    })
}

#[test]
fn a_socket_born_over_another_cgroups_task_belongs_to_an_older_listener() {
    let parent = Cgroup::top(&format!("kmem-trace-test-sock-{}", std::process::id()));
    // It listens before the trace begins, and never accepts.
    let listening = load::start(&parent, "tcp=1");
    let port = port_of(listening.pid()).expect("it listens");
    let Some(tracer) = tracer(&format!("-c {} -i 200ms", parent.name)) else {
        return;
    };
    if tracer.role("slab.socket")["default"] != true {
        machine::skip("the parent of a socket is not seen here");
        return;
    }
    // The handshake ends in a softirq over this task, which is in another cgroup.
    let ends: Vec<TcpStream> = (0..WAITING)
        .map(|_| TcpStream::connect(("127.0.0.1", port)).expect("the listener lets it wait"))
        .collect();
    thread::sleep(Duration::from_secs(1));
    let slab = Slab::next(&tracer);
    drop(ends);
    listening.end();
    tracer.end().assert_fine();
    assert_eq!(
        slab.sum("TCP", "softirq", "objects"),
        WAITING as i64,
        "{:#?}",
        slab.lines
    );
}

#[test]
fn every_server_side_socket_is_the_listeners() {
    const CONNECTIONS: i64 = 1000;
    let parent = Cgroup::top(&format!("kmem-trace-test-serv-{}", std::process::id()));
    let Some(tracer) = tracer(&format!("-c {} -i 200ms", parent.name)) else {
        return;
    };
    if tracer.role("slab.socket")["default"] != true {
        machine::skip("the parent of a socket is not seen here");
        return;
    }
    let held = load::start(&parent, &format!("netns tcp={CONNECTIONS}"));
    thread::sleep(Duration::from_secs(1));
    let slab = Slab::next(&tracer);
    held.end();
    tracer.end().assert_fine();
    let objects = slab.sum("TCP", "softirq", "objects") + slab.sum("TCP", "charged", "objects");
    // Two ends each, and the listener.
    assert_eq!(objects, 2 * CONNECTIONS + 1, "{:#?}", slab.lines);
    let size = slab.sum("TCP", "charged", "bytes") / slab.sum("TCP", "charged", "objects");
    // Those that were charged when they were accepted were born like the others.
    let born = slab.sum("TCP", "softirq", "allocated_bytes") / size;
    assert_eq!(born, CONNECTIONS, "{:#?}", slab.lines);
}
