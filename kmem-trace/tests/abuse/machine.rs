//! What only a machine of one's own can be put through: its clock set, a CPU taken away, modules
//! that go while symbols are read.

use std::{
    fs::{self, File},
    os::fd::AsRawFd as _,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use crate::{
    own, storm,
    support::{
        cgroup::Cgroup,
        lines::{self, number},
        load, machine,
        tracer::{Tracer, ask},
    },
    traceable,
};

/// Sets the wall clock by so many seconds.
fn step_clock(by: i64) {
    // SAFETY: plain numbers, which the two calls read and write.
    unsafe {
        let mut now: libc::timespec = std::mem::zeroed();
        assert_eq!(libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now), 0);
        now.tv_sec += by;
        assert_eq!(libc::clock_settime(libc::CLOCK_REALTIME, &raw const now), 0);
    }
}

#[test]
fn a_clock_that_is_set_changes_no_interval() {
    if !machine::is_vm() || !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("clock"));
    let tracer = Tracer::start(&format!("-c {} -i 200ms --no-slab", parent.name));
    tracer.next_report(&parent.name);
    for by in [-7200, 7200, 365 * 86_400, -365 * 86_400] {
        step_clock(by);
        load::pass(&parent, "anon=2M");
        thread::sleep(Duration::from_millis(500));
    }
    let ended = tracer.end();
    lines::assert_holds(ended.assert_fine());
    let mut times: Vec<f64> = lines::reports(&ended.lines, &parent.name)
        .map(|report| report["elapsed_s"].as_f64().expect("a time"))
        .collect();
    // That one comes when it is told to end.
    times.pop();
    assert!(times.len() >= 8, "{times:?}");
    for pair in times.windows(2) {
        let apart = pair[1] - pair[0];
        assert!((0.05..5.0).contains(&apart), "{times:?}");
    }
}

/// A CPU that is back when this is dropped.
struct Offline(&'static str);

impl Offline {
    fn take(file: &'static str) -> std::io::Result<Self> {
        fs::write(file, "0").map(|()| Self(file))
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        let _ = fs::write(self.0, "1");
    }
}

#[test]
fn a_cpu_that_goes_and_comes_back_leaves_the_totals_right() {
    if !machine::is_vm() || !traceable() {
        return;
    }
    let file = "/sys/devices/system/cpu/cpu1/online";
    if !Path::new(file).exists() {
        machine::skip("this machine has no CPU that can be taken offline");
        return;
    }
    let parent = Cgroup::top(&own("cpu"));
    let words = format!("-c {} -i 200ms --no-slab", parent.name);
    let first = Tracer::start(&words);
    // Its charges are in totals of the CPU that goes.
    let before = load::start_on(1, &parent, "anon=10M pipes=100");
    let offline = match Offline::take(file) {
        Ok(offline) => offline,
        Err(error) => {
            machine::skip(&format!("the kernel keeps its CPU: {error}"));
            return;
        }
    };
    assert_has_all(&first, &parent, 10 << 20);
    let during = load::start(&parent, "anon=10M pipes=100");
    let second = Tracer::start(&words);
    let elsewhere = load::start(&parent, "anon=10M");
    assert_has_all(&first, &parent, 30 << 20);
    assert_has_all(&second, &parent, 10 << 20);
    drop(offline);
    // The second tracer began without that CPU.
    let after = load::start_on(1, &parent, "anon=10M pipes=100");
    before.end();
    storm::processes_for(&parent, Duration::from_millis(300));
    assert_has_all(&first, &parent, 40 << 20);
    assert_has_all(&second, &parent, 20 << 20);
    for load in [during, elsewhere, after] {
        load.end();
    }
    for tracer in [first, second] {
        lines::assert_holds(tracer.end().assert_fine());
    }
}

/// Once all is calm, `least` bytes or more were charged, and nothing is unexplained.
#[track_caller]
fn assert_has_all(tracer: &Tracer, parent: &Cgroup, least: i64) {
    thread::sleep(Duration::from_millis(500));
    let report = tracer.next_report(&parent.name);
    lines::assert_holds(&report);
    if tracer.plan()["mode"] == "exact" && number(&report["lost"], "skipped") == 0 {
        lines::assert_exact(&report);
    }
    assert!(number(&report, "charged_bytes") >= least, "{report}");
}

/// Says that it is over when it is dropped: who waits for that waits not for ever where a check fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn modules_that_go_while_symbols_are_read_do_no_harm() {
    if !machine::is_vm() || !traceable() {
        return;
    }
    let module = "/kmem_trace_legacy.ko";
    if !Path::new(module).exists() {
        machine::skip("no module in this machine: cargo xtask matrix brings one for 6.1");
        return;
    }
    let parent = Cgroup::top(&own("module"));
    let stop = AtomicBool::new(false);
    let turns = thread::scope(|scope| {
        let loader = scope.spawn(|| {
            let mut turns = 0;
            while !stop.load(Ordering::Relaxed) {
                let file = File::open(module).expect("it is there");
                // SAFETY: system calls on an open file and on texts.
                unsafe {
                    let result =
                        libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0);
                    let error = std::io::Error::last_os_error();
                    assert_eq!(result, 0, "the kernel does not take the module: {error}");
                    libc::syscall(
                        libc::SYS_delete_module,
                        c"kmem_trace_legacy".as_ptr(),
                        libc::O_NONBLOCK,
                    );
                }
                turns += 1;
            }
            turns
        });
        let over = Over(&stop);
        for _ in 0..3 {
            let answer = ask(&format!(
                "-c {} -d 300ms --no-slab --format json",
                parent.name
            ));
            assert_eq!((answer.code(), answer.error.as_str()), (0, ""));
            let doctor = ask("doctor --format json");
            assert_eq!(doctor.code(), 0, "{doctor:?}");
        }
        // Of the calls above none looks for a call site.
        let tracer = Tracer::start(&format!("-c {} --events slab.alloc", parent.name));
        load::pass(&parent, "pipes=100");
        let ended = tracer.end();
        ended.assert_fine();
        let sites: Vec<_> = lines::of_type(&ended.lines, "event")
            .filter(|event| event["role"] == "slab.alloc")
            .filter_map(|event| event["call_site"].as_str())
            .collect();
        assert!(sites.len() > 100, "{} call sites only", sites.len());
        // An address that no symbol is found for stays one.
        let nameless = sites.iter().find(|site| site.starts_with("0x"));
        assert_eq!(nameless, None, "of {} call sites", sites.len());
        drop(over);
        loader.join().expect("it runs")
    });
    assert!(turns > 2, "{turns} turns only");
}
