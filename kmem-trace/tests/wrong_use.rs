//! What a user meets first: words that are wrong, and words for what is not there. Each is answered
//! by one line that says what, why and what to do next. Neither root nor BPF is needed for that.

mod support;

use std::{
    ffi::OsStr,
    fs::File,
    os::unix::ffi::OsStrExt as _,
    process::{Child, Command, Stdio},
};

use support::{cgroup, machine, tracer::answer};

/// What a shell would make of it; `%FF` is a byte that is no UTF-8, `%1b` an escape, `%0a` a newline,
/// `%LONG` a name of 300 letters.
const WRONG: [&str; 52] = [
    // Words that are not understood: 2.
    "",
    "nonsense",
    "--nonsense",
    "--cgruop a",
    "-c",
    "-c a -c",
    "-c a extra",
    "-c a doctor",
    "-c %FF",
    "-p",
    "-p x",
    "-p -1",
    "-p 0",
    "-p 99999999999",
    "-c a -i 0",
    "-c a -i 1ms",
    "-c a -i soon",
    "-c a -i -1s",
    "-c a -d -5s",
    "-c a -d 1s -d 2s",
    "-c a --format xml",
    "-c a --format",
    "-c a --attach magic",
    "-c a --events nonsense",
    "-c a --events counter.charge,nonsense",
    "-c a --ring 0",
    "-c a --ring 99999999",
    "-c a --max-cgroups 0",
    "-c a --depth -1",
    "-c a --record",
    "run",
    "run -c a",
    "run --cgroup a --depth x -- true",
    "demo --groups 0",
    "demo --connections many",
    "doctor extra",
    "doctor --format yaml",
    "doctor -c a",
    "explain a",
    "enable",
    "%1b[2J%0a",
    // What is not there: 1.
    "-p 4194305",
    "-c kmem-trace-no-such-cgroup",
    "-c /kmem-trace/no/such",
    "-c /etc",
    "-c /etc/passwd",
    "-c ../up",
    "-c %LONG",
    "-c kmem-trace-%1b[2J%0a",
    "run -c .. -- true",
    "explain -c kmem-trace-no-such-cgroup",
    "enable -c kmem-trace-no-such-cgroup",
];

/// The first words of [`WRONG`], which are wrong on any machine.
const NOT_UNDERSTOOD: usize = 41;

fn argument(word: &str) -> Vec<u8> {
    word.replace("%LONG", &"x".repeat(300))
        .replace("%1b", "\x1b")
        .replace("%0a", "\n")
        .split("%FF")
        .map(str::as_bytes)
        .collect::<Vec<_>>()
        .join(&0xff)
}

/// The exit code and the line, with this machine's mount point taken out.
fn asked(words: &str) -> String {
    let mut command = Command::new(machine::program());
    for word in words.split_whitespace() {
        command.arg(OsStr::from_bytes(&argument(word)));
    }
    let answer = answer(command);
    assert_eq!(answer.out, "", "{words}");
    assert_eq!(answer.error.lines().count(), 1, "{words}: {answer:?}");
    assert!(!answer.error.contains("panicked"), "{answer:?}");
    let line = answer.error.trim_end_matches('\n');
    assert!(line.chars().all(|c| !c.is_control()), "{words}: {line:?}");
    let line = line
        .replace(&cgroup::hierarchy().0.display().to_string(), "MOUNT")
        .replace(&"x".repeat(300), "xxx…");
    format!("$ kmem-trace {words}\n{}: {line}\n", answer.code())
}

#[test]
fn words_that_are_not_understood_are_answered_with_what_is_right() {
    let table: String = WRONG[..NOT_UNDERSTOOD]
        .iter()
        .map(|words| asked(words))
        .collect();
    insta::assert_snapshot!(table);
}

#[test]
fn what_is_not_there_is_named_and_where_to_look() {
    if !cgroup::is_there() {
        machine::skip("no memory cgroup hierarchy below /sys/fs/cgroup");
        return;
    }
    let table: String = WRONG[NOT_UNDERSTOOD..]
        .iter()
        .map(|words| asked(words))
        .collect();
    insta::assert_snapshot!(table);
}

#[test]
fn help_and_version_that_nobody_gets_are() {
    for word in ["--help", "--version"] {
        let ended = Command::new(machine::program())
            .arg(word)
            .stdout(File::create("/dev/full").expect("it is there"))
            .stderr(Stdio::piped())
            .spawn()
            .and_then(Child::wait_with_output)
            .expect("the program starts");
        let error = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{word}: {error}");
        assert_eq!(error.lines().count(), 1, "{word}: {error}");
        assert!(
            error.starts_with("kmem-trace: cannot write the output: No space"),
            "{error}"
        );
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for words in [
        &["--help"][..],
        &["--version"],
        &["run", "--help"],
        &["help"],
    ] {
        let mut command = Command::new(machine::program());
        command.args(words);
        let answer = answer(command);
        assert_eq!((answer.code(), answer.error.as_str()), (0, ""), "{words:?}");
        assert!(answer.out.contains("kmem-trace"), "{words:?}");
    }
}

#[test]
fn the_help_lists_the_roles_of_events() {
    let mut command = Command::new(machine::program());
    command.arg("--help");
    let help = answer(command).out;
    let (_, from) = help.split_once("--events").expect("it is an option");
    let (events, _) = from.split_once("--format").expect("it is the next");
    insta::assert_snapshot!(events);
}
