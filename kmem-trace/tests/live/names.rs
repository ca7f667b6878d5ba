//! Cgroups and processes may be called almost anything. Nothing they are called reaches the
//! terminal as a control sequence, breaks a line, or passes for another name.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::symlink},
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use crate::{
    own,
    support::{
        cgroup::Cgroup,
        lines, load, soon,
        tracer::{Tracer, answer},
    },
    traceable,
};

/// A name, and how it is shown. The kernel takes no newline in a cgroup's name.
const NAMES: [(&[u8], &str); 8] = [
    (b"two words", "two words"),
    (b"\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
    (b"\\x1b[2J", "\\\\x1b[2J"),
    (b"\xff\xfe", "\\xff\\xfe"),
    (b"tab\there\r", "tab\\x09here\\x0d"),
    (b"{\"type\":\"summary\"}", "{\"type\":\"summary\"}"),
    (
        "\u{202e}txt.exe \u{e9}".as_bytes(),
        "\\u{202e}txt.exe \u{e9}",
    ),
    (&[b'n'; 255], ""),
];

fn shown(name: &[u8], as_text: &str) -> String {
    match as_text {
        "" => String::from_utf8_lossy(name).into_owned(),
        text => text.to_owned(),
    }
}

/// Directories below a cgroup, removed before it.
struct Children(Vec<PathBuf>);

impl Children {
    fn of(parent: &Cgroup) -> Self {
        let made = NAMES.iter().map(|(name, _)| {
            let dir = parent.dir.join(OsStr::from_bytes(name));
            fs::create_dir(&dir).unwrap_or_else(|error| panic!("{dir:?}: {error}"));
            dir
        });
        Self(made.collect())
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for dir in &self.0 {
            if let Err(error) = fs::remove_dir(dir) {
                eprintln!("{dir:?} stays behind: {error}");
            }
        }
    }
}

fn assert_harmless(text: &str) {
    let is_control = |c: char| c.is_control() && c != '\n';
    assert!(!text.contains(is_control), "{text:?}");
    assert!(!text.contains('\u{202e}'), "{text:?}");
}

#[test]
fn no_cgroup_is_called_so_that_output_breaks() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("names"));
    let _children = Children::of(&parent);
    // `Tracer` takes nothing but UTF-8 with one JSON object a line.
    let tracer = Tracer::start(&format!("-c {} -i 100ms --depth 1", parent.name));
    for (name, as_text) in NAMES {
        let path = format!("{}/{}", parent.name, shown(name, as_text));
        lines::assert_holds(&tracer.next_report(&path));
    }
    let late = parent.dir.join("late\x1b[31m");
    fs::create_dir(&late).expect("it can be made");
    let report = tracer.next_report(&format!("{}/late\\x1b[31m", parent.name));
    fs::remove_dir(&late).expect("nothing is in it");
    lines::assert_holds(&report);
    tracer.end().assert_fine();

    let mut screen = Command::new(crate::support::machine::program());
    screen.args(["-d", "300ms", "--depth", "1", "-c", &parent.name]);
    let answer = answer(screen);
    assert_eq!(answer.code(), 0, "{answer:?}");
    assert_harmless(&answer.out);
    for (name, as_text) in NAMES {
        assert!(answer.out.contains(&shown(name, as_text)), "{}", answer.out);
    }
}

#[test]
fn neither_is_a_process() {
    if !traceable() {
        return;
    }
    let parent = Cgroup::top(&own("comm"));
    let folder = tempfile::tempdir().expect("there is room");
    let shell = folder.path().join(OsStr::from_bytes(b"\x1b[2J\n\xff\"\\"));
    symlink("/bin/sh", &shell).expect("there is room");
    let tracer = Tracer::start(&format!("-c {} -i 100ms --events", parent.name));
    let script = "echo $$ > \"$0\"; x=$(head -c 3000000 /dev/zero | tr '\\0' a); echo ${#x}";
    let status = Command::new(&shell)
        .args(["-c", script])
        .arg(parent.dir.join("cgroup.procs"))
        .output()
        .expect("the shell starts");
    assert!(status.status.success(), "{status:?}");
    let event = tracer.event("of the shell", |event| {
        event["comm"] == "\\x1b[2J\\x0a\\xff\"\\\\"
    });
    assert!(event["cgroup"].is_string(), "{event}");
    tracer.end().assert_fine();
}

#[test]
fn a_cgroup_made_again_under_the_same_name_is_not_held_against_the_ledger_of_the_first() {
    if !traceable() {
        return;
    }
    let first = Cgroup::top(&own("again"));
    let tracer = Tracer::start(&format!("-c {} -i 100ms", first.name));
    load::pass(&first, "anon=5M");
    tracer.next_report(&first.name);
    assert!(first.remove());
    // Its files are found by the same path.
    let second = Cgroup::top(&first.name);
    let held = load::start(&second, "anon=30M");
    let is_said = soon(Duration::from_secs(10), || tracer.count("gone") > 0);
    assert!(is_said, "the tracer does not say that it is gone");
    let reports = tracer.count("report");
    thread::sleep(Duration::from_millis(500));
    assert_eq!(tracer.count("report"), reports, "of another cgroup");
    held.end();
    let ended = tracer.end();
    ended.assert_fine();
    let gone: Vec<_> = lines::of_type(&ended.lines, "gone").collect();
    assert_eq!(gone.len(), 1, "{gone:?}");
    lines::assert_keys(gone[0], lines::GONE);
    assert_eq!(gone[0]["cgroup"].as_str(), Some(first.name.as_str()));
}
