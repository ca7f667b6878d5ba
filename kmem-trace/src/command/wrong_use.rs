//! What clap says to a wrong invocation, in one line: what, why, what to do next.
//!
//! Not here: what cannot be done although it was asked for in the right words.

use std::ffi::OsStr;

use clap::{
    CommandFactory as _,
    error::{ContextKind, ContextValue, Error, ErrorKind},
};

use super::cli::Cli;

/// The line for a wrong invocation, without the program's name; `first` is the word behind it.
pub fn line(error: &Error, first: Option<&OsStr>) -> String {
    let command = command(first);
    let help = format!("`{command} --help` says more");
    let what = match error.kind() {
        ErrorKind::MissingRequiredArgument => return missing(error, &command),
        ErrorKind::InvalidSubcommand => format!(
            "there is no command {}; to trace a cgroup of that name, write -c before it",
            quoted(error, ContextKind::InvalidSubcommand)
        ),
        ErrorKind::UnknownArgument => {
            let argument = text(error, ContextKind::InvalidArg);
            if argument.starts_with('-') {
                match text(error, ContextKind::SuggestedArg) {
                    close if close.is_empty() => format!("there is no option {argument}"),
                    close => format!("there is no option {argument}; did you mean {close}?"),
                }
            } else {
                format!("\"{argument}\" is one word too many")
            }
        }
        ErrorKind::ArgumentConflict => {
            let argument = text(error, ContextKind::InvalidSubcommand);
            let (one, other) = (
                text(error, ContextKind::InvalidArg),
                text(error, ContextKind::PriorArg),
            );
            if argument.is_empty() && one == other {
                format!("{one} is given twice")
            } else if argument.is_empty() {
                format!("{one} and {other} exclude each other")
            } else {
                format!(
                    "\"{argument}\" is one word too many: a command such as run or doctor comes first, with its options behind it"
                )
            }
        }
        ErrorKind::InvalidUtf8 => {
            "an argument is no UTF-8 text; name a process in such a cgroup instead (-p PID)"
                .to_owned()
        }
        _ => first_paragraph(error),
    };
    let end = if what.ends_with('?') { "" } else { ";" };
    format!("{what}{end} {help}")
}

fn missing(error: &Error, command: &str) -> String {
    let names = text(error, ContextKind::InvalidArg);
    if names.contains("<CMD>") {
        return format!(
            "there is no command to run; write it behind two dashes, as in `{command} -- make -j4`"
        );
    }
    if command == PROGRAM {
        return format!(
            "nothing to trace; name a cgroup (-c NAME), a process (-p PID) or a command (`{PROGRAM} run -- CMD`)"
        );
    }
    format!("{names} is missing; `{command} --help` says more")
}

const PROGRAM: &str = "kmem-trace";

/// `kmem-trace`, or `kmem-trace run` where the words are for that.
fn command(first: Option<&OsStr>) -> String {
    let name = first
        .and_then(OsStr::to_str)
        .filter(|name| Cli::command().find_subcommand(name).is_some());
    match name {
        Some(name) => format!("{PROGRAM} {name}"),
        None => PROGRAM.to_owned(),
    }
}

fn text(error: &Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(all)) => all.join(" "),
        _ => String::new(),
    }
}

fn quoted(error: &Error, kind: ContextKind) -> String {
    format!("\"{}\"", text(error, kind))
}

/// What clap says before its hints, in one line.
fn first_paragraph(error: &Error) -> String {
    let all = error.render().to_string();
    let paragraph = all.split("\n\n").next().unwrap_or(&all);
    let lines: Vec<&str> = paragraph.lines().map(str::trim).collect();
    let joined = lines.join(" ");
    joined.strip_prefix("error: ").unwrap_or(&joined).to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::command::cli::Cli;

    fn said(words: &[&str]) -> String {
        let all = [&[PROGRAM], words].concat();
        let first = words.first().map(OsStr::new);
        line(&Cli::try_parse_from(all).expect_err("wrong"), first)
    }

    #[test]
    fn a_wrong_value_is_said_with_what_is_right_and_where_to_read_on() {
        let line = said(&["run", "--format", "xml", "--", "true"]);
        assert_eq!(
            line,
            "invalid value 'xml' for '--format <FORMAT>' [possible values: table, json]; `kmem-trace run --help` says more"
        );
    }

    #[test]
    fn a_typing_error_is_answered_with_what_was_meant() {
        let line = said(&["--cgruop", "a"]);
        assert!(line.contains("did you mean --cgroup"), "{line}");
    }

    #[test]
    fn every_answer_is_one_line() {
        for words in [
            &[][..],
            &["x"],
            &["run"],
            &["-c", "a", "b"],
            &["-c"],
            &["enable"],
        ] {
            let line = said(words);
            assert_eq!(line.lines().count(), 1, "{words:?}: {line}");
        }
    }
}
