//! What a real kernel does with writes to limit files, and that the trace tells it: the value, the
//! limit before and after, the result and the reason. Runs as root in a machine of
//! `cargo xtask vm`, which sets `KMEM_TRACE_VM`; anywhere else each test says so and ends.
//!
//! Nothing here knows a kernel's version: what the kernel returned to the write and what its file
//! reads before and after is what the event must say.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

const V1_ROOT: &str = "/sys/fs/cgroup/memory";
const V2_ROOT: &str = "/sys/fs/cgroup";
const NO_LIMIT: u64 = i64::MAX as u64 / 4096 * 4096;
const PATIENCE: Duration = Duration::from_secs(20);

fn in_vm() -> bool {
    let in_vm = std::env::var_os("KMEM_TRACE_VM").is_some();
    if !in_vm {
        println!("skipped: KMEM_TRACE_VM is not set (run by `cargo xtask vm`)");
    }
    in_vm
}

fn is_v1() -> bool {
    Path::new(V1_ROOT).join("memory.usage_in_bytes").exists()
}

fn root() -> PathBuf {
    PathBuf::from(if is_v1() { V1_ROOT } else { V2_ROOT })
}

/// A cgroup that is removed at the end.
struct Cgroup {
    dir: PathBuf,
    name: String,
}

impl Cgroup {
    fn new(name: &str) -> Self {
        let dir = root().join(name);
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        Self {
            dir,
            name: name.to_owned(),
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} stays behind", self.dir.display());
    }
}

/// A running trace of one cgroup and the objects it prints.
struct Trace {
    child: Child,
    lines: Receiver<Value>,
    plan: Value,
}

impl Trace {
    /// `None`, with a word, where this kernel cannot attach like that.
    fn start(cgroup: &str, attach: &str, arguments: &[&str]) -> Option<Self> {
        let binary = std::env::var("KMEM_TRACE_BIN").expect("the machine sets KMEM_TRACE_BIN");
        let mut child = Command::new(binary)
            .args(["--cgroup", cgroup, "--format", "json", "--attach", attach])
            .arg("--no-slab")
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kmem-trace starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let (send, lines) = channel();
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let value: Value =
                    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                if send.send(value).is_err() {
                    return;
                }
            }
        });
        let Ok(plan) = lines.recv_timeout(PATIENCE) else {
            let mut why = String::new();
            let mut error = child.stderr.take().expect("piped");
            error.read_to_string(&mut why).expect("it is text");
            let refused = ["kmem-trace: --attach ", "kmem-trace: --events: "];
            assert!(refused.iter().any(|begin| why.starts_with(begin)), "{why}");
            assert_eq!(child.wait().expect("it ends").code(), Some(1));
            println!("skipped {attach}: {why}");
            return None;
        };
        assert_eq!(plan["type"], "plan");
        Some(Self { child, lines, plan })
    }

    fn role(&self, name: &str) -> Value {
        let roles = self.plan["roles"].as_array().expect("roles");
        roles
            .iter()
            .find(|row| row["role"] == name)
            .cloned()
            .unwrap_or_else(|| panic!("no role {name}"))
    }

    /// The next event of a write to that file.
    fn event(&self, file: &str) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self
                .lines
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("no event of {file}"));
            if line["type"] == "event" && line["role"] == "limit.write" {
                assert_eq!(line["file"], file, "{line}");
                return line;
            }
        }
    }

    fn stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
        let _ = self.child.wait();
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a file reads, in bytes.
fn limit(path: &Path) -> u64 {
    let text =
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    match text.trim() {
        "max" => NO_LIMIT,
        number => number
            .parse()
            .unwrap_or_else(|error| panic!("{number}: {error}")),
    }
}

/// Writes once, as `echo` does; the error's number.
fn write(path: &Path, text: &str) -> Result<(), i32> {
    let mut file = File::options()
        .write(true)
        .open(path)
        .expect("a limit file can be opened");
    file.write(format!("{text}\n").as_bytes())
        .map(|_| ())
        .map_err(|error| error.raw_os_error().expect("from the kernel"))
}

/// Writes, and checks that the event says what the kernel said and did.
fn told(trace: &Trace, cgroup: &Path, file: &str, text: &str) -> Value {
    let path = cgroup.join(file);
    let old = limit(&path);
    let result = write(&path, text);
    let new = limit(&path);
    let event = trace.event(file);
    println!(
        "{file} {text:?}: {} → {}  {} — {}",
        old,
        new,
        event["result"].as_str().unwrap_or("?"),
        event["why"].as_str().unwrap_or("")
    );
    assert_eq!(event["text"], text.trim_end(), "{event}");
    assert_eq!(event["old_bytes"], old, "{event}");
    assert_eq!(event["new_bytes"], new, "{event}");
    let expected = match result {
        Ok(()) => "ok".to_owned(),
        Err(number) => format!("{:?}", nix::errno::Errno::from_raw(number)),
    };
    assert_eq!(event["result"], expected, "{event}");
    assert_eq!(event["pid"], std::process::id(), "{event}");
    if result.is_err() {
        let why = event["why"].as_str().unwrap_or("");
        assert!(why.starts_with(&expected), "{event}");
    }
    event
}

fn why(event: &Value) -> &str {
    event["why"].as_str().unwrap_or("")
}

fn files() -> &'static [&'static str] {
    if is_v1() {
        &[
            "memory.kmem.limit_in_bytes",
            "memory.limit_in_bytes",
            "memory.soft_limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            "memory.kmem.tcp.limit_in_bytes",
        ]
    } else {
        &[
            "memory.max",
            "memory.high",
            "memory.min",
            "memory.low",
            "memory.swap.max",
        ]
    }
}

fn no_limit() -> &'static str {
    if is_v1() { "-1" } else { "max" }
}

/// A process that sits in a cgroup.
struct Task(Child);

impl Task {
    fn inside(cgroup: &Path, command: &[&str]) -> Self {
        let procs =
            std::ffi::CString::new(cgroup.join("cgroup.procs").to_str().expect("our own name"))
                .expect("no NUL");
        let mut built = Command::new(command[0]);
        built.args(&command[1..]);
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe {
            built.pre_exec(move || {
                let file = libc::open(procs.as_ptr(), libc::O_WRONLY);
                let written = libc::write(file, c"0".as_ptr().cast(), 1);
                libc::close(file);
                if written == 1 {
                    Ok(())
                } else {
                    Err(std::io::Error::last_os_error())
                }
            });
        }
        Self(built.spawn().expect("a task starts"))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn each_text_is_told(attach: &str) {
    // One trace for them all: an emulated machine takes seconds to begin one.
    let parent = Cgroup::new(&format!("limits-{attach}"));
    if !is_v1() {
        let file = parent.dir.join("cgroup.subtree_control");
        fs::write(file, "+memory").expect("its children can have limits");
    }
    let mut asked = Vec::new();
    for (number, &file) in files().iter().enumerate() {
        let cgroup = Cgroup::new(&format!("{}/{number}", parent.name));
        if cgroup.dir.join(file).exists() {
            asked.push((cgroup, file));
        } else {
            println!("this kernel has no {file}");
        }
    }
    let Some(trace) = Trace::start(&parent.name, attach, &["--events", "limit.write"]) else {
        return;
    };
    for (cgroup, file) in &asked {
        for text in [
            "0",
            no_limit(),
            "10000",
            "5G",
            "nonsense",
            "0x100000",
            "99999999999999999999999",
            "",
        ] {
            let event = told(&trace, &cgroup.dir, file, text);
            assert_eq!(event["cgroup"], format!("/{}", cgroup.name), "{event}");
            let (value, new) = (&event["value_bytes"], &event["new_bytes"]);
            // Where the kernel took it and did something, it took what we read in the text.
            if event["result"] == "ok" && event["old_bytes"] != *new {
                assert_eq!(value, new, "{event}");
            }
            match text {
                "nonsense" => assert!(
                    value.is_null() && why(&event).contains("no size"),
                    "{event}"
                ),
                "10000" if event["result"] == "ok" => {
                    assert!(why(&event).contains("10000 B → 8192 B"), "{event}");
                }
                _ => {}
            }
            if *file == "memory.kmem.limit_in_bytes" && text == "0" && event["result"] == "ok" {
                let ignored = *new != 0;
                assert_eq!(
                    why(&event).contains("this kernel ignores it"),
                    ignored,
                    "{event}"
                );
                assert_eq!(
                    why(&event).contains("kmem accounting was active already"),
                    !ignored,
                    "{event}"
                );
            }
        }
    }
}

#[test]
fn each_text_written_to_each_file_is_told_by_kprobe() {
    if in_vm() {
        each_text_is_told("kprobe");
    }
}

#[test]
fn each_text_written_to_each_file_is_told_by_fentry() {
    if in_vm() {
        each_text_is_told("fentry");
    }
}

#[test]
fn a_kmem_limit_with_a_task_or_a_child_inside_is_told() {
    if !in_vm() || !is_v1() {
        println!("v1 only");
        return;
    }
    let file = "memory.kmem.limit_in_bytes";
    let cgroup = Cgroup::new("limits-task");
    let Some(trace) = Trace::start(
        &cgroup.name,
        "kprobe",
        &["--events", "limit.write,limit.kmem"],
    ) else {
        return;
    };
    let kmem = trace.role("limit.kmem");
    println!(
        "limit.kmem: {} {} {}",
        kmem["status"], kmem["symbol"], kmem["why"]
    );
    assert_eq!(kmem["status"], "exact");
    {
        let _task = Task::inside(&cgroup.dir, &["sleep", "1000"]);
        thread::sleep(Duration::from_millis(300));
        let event = told(&trace, &cgroup.dir, file, "0");
        if event["result"] == "EBUSY" {
            assert!(why(&event).contains("is above the new limit"), "{event}");
        }
        told(&trace, &cgroup.dir, file, "-1");
    }
    let _child = Cgroup::new("limits-task/child");
    told(&trace, &cgroup.dir, file, "0");
    told(&trace, &cgroup.dir, file, "-1");
}

#[test]
fn a_limit_below_what_cannot_be_reclaimed_is_told() {
    if !in_vm() {
        return;
    }
    let cgroup = Cgroup::new("limits-used");
    // Pages of a file system in memory: without swap there is nowhere to put them.
    let held = "/dev/shm/limits-held";
    let _task = Task::inside(
        &cgroup.dir,
        &[
            "sh",
            "-c",
            &format!("dd if=/dev/zero of={held} bs=1M count=20 2>/dev/null; sleep 1000"),
        ],
    );
    thread::sleep(Duration::from_secs(2));
    let Some(trace) = Trace::start(&cgroup.name, "auto", &["--events", "limit.write"]) else {
        return;
    };
    if is_v1() {
        let event = told(&trace, &cgroup.dir, "memory.limit_in_bytes", "1M");
        assert_eq!(event["result"], "EBUSY", "{event}");
        assert!(why(&event).contains("is above the new limit"), "{event}");
    } else {
        let event = told(&trace, &cgroup.dir, "memory.high", "1M");
        assert!(why(&event).contains("is above it"), "{event}");
        let event = told(&trace, &cgroup.dir, "memory.max", "1M");
        assert!(why(&event).contains("is above it"), "{event}");
    }
    let _ = fs::remove_file(held);
}

#[test]
fn the_root_cgroup_has_no_limit_and_the_event_says_so() {
    if !in_vm() || !is_v1() {
        println!("v1 only: on v2 the root has no such files");
        return;
    }
    let Some(trace) = Trace::start("/", "auto", &["--events", "limit.write"]) else {
        return;
    };
    for file in [
        "memory.limit_in_bytes",
        "memory.kmem.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
    ] {
        if !root().join(file).exists() {
            continue;
        }
        let event = told(&trace, &root(), file, "1G");
        assert_eq!(
            why(&event),
            "EINVAL: the root cgroup has no limit",
            "{event}"
        );
    }
}

#[test]
fn the_root_stands_for_all_cgroups_where_events_are_asked_for() {
    if !in_vm() {
        return;
    }
    let Some(trace) = Trace::start("/", "auto", &["--events", "limit.write"]) else {
        return;
    };
    let cgroup = Cgroup::new("limits-anywhere");
    let file = if is_v1() {
        "memory.limit_in_bytes"
    } else {
        "memory.max"
    };
    let event = told(&trace, &cgroup.dir, file, "64M");
    assert_eq!(event["cgroup"], "/limits-anywhere", "{event}");
}

#[test]
fn a_limit_write_appears_between_reports() {
    if !in_vm() {
        return;
    }
    let cgroup = Cgroup::new("limits-between");
    let Some(trace) = Trace::start(&cgroup.name, "auto", &["--interval", "200ms"]) else {
        return;
    };
    let file = if is_v1() {
        "memory.limit_in_bytes"
    } else {
        "memory.max"
    };
    thread::sleep(Duration::from_millis(500));
    told(&trace, &cgroup.dir, file, "64M");
}
