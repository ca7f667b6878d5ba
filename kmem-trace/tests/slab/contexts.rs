//! What a CPU was in when it asked for an object, and who was in no cgroup at all, made to happen on
//! purpose: the timer's interrupt, a task with softirqs off, the root.

use std::{
    net::{Shutdown, TcpListener, TcpStream},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    attribution::{is_possible, tracer},
    causes::{Inside, booted_with_nokmem, is_charged, own, report, sum},
    support::{
        cgroup,
        lines::{self, number},
        load, machine,
        tracer::Tracer,
    },
};

/// Alarms, each of them an object.
const ALARMS: u32 = 600;
/// Of them, those that go off over this task at least: the others over whoever has its CPU then.
const OVER_US: i64 = 180;
/// Connections that their client closes after the server has heard that it will.
const CLOSED: i64 = 100;

static RANG: AtomicU32 = AtomicU32::new(0);

extern "C" fn rings(_: libc::c_int) {
    RANG.fetch_add(1, Ordering::Relaxed);
}

/// Has the timer's interrupt send signals to this task while it runs, and so over this task.
fn alarms() {
    let timer = |microseconds| libc::itimerval {
        it_interval: libc::timeval {
            tv_sec: 0,
            tv_usec: microseconds,
        },
        it_value: libc::timeval {
            tv_sec: 0,
            tv_usec: microseconds,
        },
    };
    // SAFETY: the handler only counts; the kernel reads a structure of ours.
    unsafe {
        libc::signal(libc::SIGALRM, rings as *const () as libc::sighandler_t);
        libc::setitimer(libc::ITIMER_REAL, &timer(2000), std::ptr::null_mut());
        while RANG.load(Ordering::Relaxed) < ALARMS {
            std::hint::spin_loop();
        }
        libc::setitimer(libc::ITIMER_REAL, &timer(0), std::ptr::null_mut());
    }
}

/// `__sigqueue_alloc`, or what the compiler put it into.
fn is_signal(line: &Value) -> bool {
    line["call_site"]
        .as_str()
        .is_some_and(|site| site.contains("sigqueue") || site.contains("send_signal"))
}

fn signals_of_the_timer(words: &str) {
    if !is_charged() {
        return;
    }
    if machine::is_realtime() {
        // hrtimers that are not marked otherwise expire there (kernel/time/hrtimer.c).
        machine::skip("a thread of the kernel sends a timer's signals on PREEMPT_RT");
        return;
    }
    let group = own("timer");
    let Some(tracer) = tracer(&format!("-c {} -i 200ms {words}", group.name)) else {
        return;
    };
    let context = tracer.role("slab.context");
    if context["status"] != "exact" {
        machine::skip(&format!("the timer's interrupt is not seen: {context}"));
        return;
    }
    let held = Inside::new(&group, alarms);
    let of = |report: &[Value], cause: &str| {
        sum(report, "allocated_bytes", |line| {
            line["cause"] == cause && is_signal(line)
        })
    };
    // Objects of less than 64 bytes are none of these.
    let least = OVER_US * 64;
    let report = report(&tracer, "signals of a timer", |report| {
        of(report, "hardirq") + of(report, "not-accountable") >= least
    });
    drop(held);
    tracer.end().assert_fine();
    if of(&report, "not-accountable") > 0 {
        machine::skip("this kernel does not account signals (before 5.15)");
        return;
    }
    for cause in ["unknown", "softirq", "bh-disabled"] {
        let few = i64::from(ALARMS) * 64 / 20;
        assert!(of(&report, cause) < few, "{cause}: {report:#?}");
    }
}

#[test]
fn what_the_timers_interrupt_asks_for_is_put_down_to_a_hardirq() {
    signals_of_the_timer("");
}

#[test]
fn the_timers_interrupt_is_known_by_its_events_where_the_preempt_count_cannot_be_read() {
    signals_of_the_timer("--strike slab.context:0");
}

#[test]
fn what_a_task_with_softirqs_off_asks_for_is_charged_or_put_down_to_that() {
    if !is_charged() {
        return;
    }
    let group = own("bh");
    let Some(tracer) = tracer(&format!("-c {} -i 200ms", group.name)) else {
        return;
    };
    if tracer.role("slab.context")["mechanism"] != "kernel read" && cgroup::is_v1() {
        machine::skip("the preempt count cannot be read here");
        return;
    }
    // `tcp_close` in FIN_WAIT2 makes the small socket that waits (`inet_twsk_alloc`) with softirqs
    // off; `memcg_kmem_bypass` asked `in_interrupt` before 5.14, and asks `in_task` since.
    let held = Inside::new(&group, || {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let to = listener.local_addr().expect("it has one");
        let (clients, servers): (Vec<TcpStream>, Vec<TcpStream>) = (0..CLOSED)
            .map(|_| {
                let client = TcpStream::connect(to).expect("it listens");
                let (server, _) = listener.accept().expect("just connected");
                client.shutdown(Shutdown::Write).expect("connected");
                (client, server)
            })
            .unzip();
        // Until the last of them has heard that the other end knows, delayed as that may be.
        thread::sleep(Duration::from_secs(1));
        drop(clients);
        servers
    });
    let of = |report: &[Value], cause: &str| {
        sum(report, "allocated_bytes", |line| {
            // The cache may be one of several of its size, and the call site too.
            let site = line["call_site"].as_str().unwrap_or_default();
            line["cause"] == cause
                && (line["cache"] == "tw_sock_TCP" || site.contains("twsk_alloc"))
        })
    };
    let report = report(&tracer, "sockets that wait", |report| {
        of(report, "bh-disabled") + of(report, "charged") >= CLOSED * 128
    });
    drop(held);
    tracer.end().assert_fine();
    println!(
        "softirqs off: {}, charged: {}",
        of(&report, "bh-disabled"),
        of(&report, "charged")
    );
    assert_eq!(of(&report, "unknown"), 0, "{report:#?}");
    // Either this kernel charges them or it does not.
    assert!(
        of(&report, "bh-disabled") == 0 || of(&report, "charged") == 0,
        "{report:#?}"
    );
}

/// By cause, what nobody traced asked for on the node, as the last report has it.
fn others(report: &[Value], cause: &str) -> i64 {
    lines::of_type(report, "node")
        .flat_map(|node| node["others"].as_array().cloned().unwrap_or_default())
        .filter(|it| it["cause"] == cause)
        .map(|it| number(&it, "bytes"))
        .sum()
}

#[test]
fn what_the_root_cgroup_asks_for_is_put_down_to_it() {
    if !is_possible() || booted_with_nokmem() {
        return;
    }
    const PIPES: i64 = 2000;
    let group = own("rootless");
    let Some(tracer) = tracer(&format!("-c {} -i 200ms", group.name)) else {
        return;
    };
    let seen = |tracer: &Tracer| report(tracer, "others", |report| !report.is_empty());
    let before = seen(&tracer);
    let (root, _) = cgroup::hierarchy();
    let held = load::start_in(&root, &format!("pipes={PIPES}"));
    // Two files each, of at least 192 bytes.
    let least = PIPES * 2 * 192;
    let report = report(&tracer, "files of the root's", |report| {
        others(report, "root") - others(&before, "root") >= least
    });
    held.end();
    tracer.end().assert_fine();
    let unknown = others(&report, "unknown") - others(&before, "unknown");
    assert!(unknown * 100 <= least, "{unknown} unknown: {report:#?}");
    // None of it is the traced cgroup's.
    let ours = sum(&report, "objects", |line| line["cause"] == "root");
    assert_eq!(ours, 0, "{report:#?}");
}
