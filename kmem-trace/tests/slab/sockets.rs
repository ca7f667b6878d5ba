//! Sockets born in softirq belong to whom the listening socket belongs to, all of them.

use std::{fs, net::TcpStream, path::Path, thread, time::Duration};

use serde_json::json;

use crate::{
    attribution::{Slab, tracer},
    support::{
        cgroup::Cgroup,
        lines::{self, number},
        load, machine,
    },
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

#[test]
fn the_demo_says_how_much_of_what_is_in_no_usage_is_its_own() {
    let name = format!("kmem-trace-test-demo-{}", std::process::id());
    let Some(tracer) = tracer(&format!("demo -c {name} --groups 2 --connections 200")) else {
        return;
    };
    let ended = tracer.wait();
    ended.assert_fine();
    let demo = lines::of_type(&ended.lines, "demo").last().expect("a demo");
    let node = lines::of_type(&ended.lines, "node").last().expect("a node");
    let own = number(demo, "not_charged_bytes");
    assert!(own > 0, "{demo}");
    assert_eq!(own, number(node, "not_charged_bytes"), "{node}");
    let lost = &node["lost"];
    let is_none = |key: &str| lost[key].as_i64().unwrap_or(0) == 0;
    let nothing_lost = ["objects", "misread", "skipped", "unwatched_softirqs"]
        .into_iter()
        .all(is_none)
        && lost["by_role"] == json!({});
    // Whose those were that went without an event, nobody knows.
    let unseen = node["unseen"].as_array().expect("a list");
    let nothing_went = unseen.iter().all(|cache| number(cache, "objects") > 0);
    let how = demo["not_charged_are"].as_str().expect("a word");
    if nothing_lost && nothing_went {
        assert_eq!(how, "counted", "{demo} {node}");
    } else {
        let words = ["counted", "at-least", "at-most", "about"];
        assert!(words.contains(&how), "{demo} {node}");
    }
}
