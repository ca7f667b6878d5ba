//! Where tracefs is and what its events look like: the `format` files.
//!
//! Not here: attaching to events, and what their fields mean. Under lockdown `confidentiality`
//! the files may be refused although tracefs is mounted; that is [`TracefsError::File`] with
//! [`FileError::is_denied`].

use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use thiserror::Error;

use super::{
    cgroupfs::mountinfo,
    file::{self, FileError, LineError},
};

/// Where systems mount tracefs, the older place last.
const USUAL: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Why tracefs gives no answer.
#[derive(Debug, Error)]
pub enum TracefsError {
    #[error("tracefs is not mounted; as root: mount -t tracefs nodev /sys/kernel/tracing")]
    NotMounted,
    #[error("cannot mount tracefs at {}: {source}", at.display())]
    Mount { at: PathBuf, source: nix::Error },
    #[error("this kernel has no event {category}:{name}")]
    NoEvent { category: String, name: String },
    #[error(transparent)]
    File(#[from] FileError),
}

/// A mounted tracefs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracefs {
    pub root: PathBuf,
}

/// The record of an event, from its `format` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    pub name: String,
    /// What perf events call `config`.
    pub id: u32,
    /// In the order of the file; the `common_` ones are among them.
    pub fields: Vec<Field>,
}

impl Format {
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// A field of an event's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    /// As in the file, arrays with their length: `char[16]`, `__data_loc char[]`.
    pub type_name: String,
    /// Bytes from the start of the record.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
    pub signed: bool,
    /// The field holds `length << 16 | offset` of the value, not the value.
    pub data_loc: bool,
}

impl Tracefs {
    /// Finds the mounted tracefs.
    ///
    /// # Errors
    /// [`TracefsError::NotMounted`], or mountinfo is unreadable.
    pub fn find() -> Result<Tracefs, TracefsError> {
        let mounts = file::read_as(Path::new(mountinfo::SELF), mountinfo::parse)?;
        // debugfs mounts tracefs in itself when somebody looks, so it may show in no mount yet.
        let looked_at = || {
            USUAL
                .iter()
                .map(PathBuf::from)
                .find(|root| root.join("events").is_dir())
                .map(|root| Tracefs { root })
        };
        Tracefs::among(&mounts)
            .or_else(looked_at)
            .ok_or(TracefsError::NotMounted)
    }

    /// The tracefs among mounts: a usual place if it is there, else any.
    pub fn among(mounts: &[mountinfo::Mount]) -> Option<Tracefs> {
        let is_tracefs = |mount: &&mountinfo::Mount| mount.fs_type == "tracefs";
        let usual = USUAL.iter().find_map(|at| {
            mounts
                .iter()
                .filter(is_tracefs)
                .find(|m| m.mount_point == Path::new(at))
        });
        usual
            .or_else(|| mounts.iter().find(is_tracefs))
            .map(|mount| Tracefs {
                root: mount.mount_point.clone(),
            })
    }

    /// Mounts tracefs at its usual place. Needs `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// [`TracefsError::Mount`].
    pub fn mount() -> Result<Tracefs, TracefsError> {
        let at = Path::new(USUAL[0]);
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("nodev"), at, Some("tracefs"), flags, None::<&str>).map_err(|source| {
            TracefsError::Mount {
                at: at.to_owned(),
                source,
            }
        })?;
        Ok(Tracefs {
            root: at.to_owned(),
        })
    }

    /// Layout of an event's record.
    ///
    /// # Errors
    /// [`TracefsError::NoEvent`]; [`TracefsError::File`] if refused or not understood.
    pub fn event_format(&self, category: &str, name: &str) -> Result<Format, TracefsError> {
        let path = self.event(category, name).join("format");
        match file::read_as(&path, parse_format) {
            Err(error) if error.is_absent() => Err(TracefsError::NoEvent {
                category: category.to_owned(),
                name: name.to_owned(),
            }),
            other => Ok(other?),
        }
    }

    pub fn event_exists(&self, category: &str, name: &str) -> bool {
        self.event(category, name).is_dir()
    }

    /// Names of the events of a category, sorted; empty if there is no such category.
    ///
    /// # Errors
    /// [`TracefsError::File`].
    pub fn events(&self, category: &str) -> Result<Vec<String>, TracefsError> {
        let path = self.root.join("events").join(category);
        let unreadable = |source| FileError::Read {
            path: path.clone(),
            source,
        };
        let entries = match std::fs::read_dir(&path).map_err(unreadable) {
            Ok(entries) => entries,
            Err(error) if error.is_absent() => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(unreadable)?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn event(&self, category: &str, name: &str) -> PathBuf {
        self.root.join("events").join(category).join(name)
    }
}

/// Parses an event's `format` file (`Documentation/trace/events.rst`).
///
/// # Errors
/// [`LineError`] for a field that is not understood or a file without `ID:`.
pub fn parse_format(bytes: &[u8]) -> Result<Format, LineError> {
    let mut format = Format {
        name: String::new(),
        id: 0,
        fields: Vec::new(),
    };
    let mut id = None;
    let mut last = 0;
    for (number, line) in file::lines(bytes) {
        last = number;
        let line = line.trim_ascii();
        if let Some(name) = line.strip_prefix(b"name:") {
            format.name = file::text(name.trim_ascii());
        } else if let Some(value) = line.strip_prefix(b"ID:") {
            let value = file::number(value.trim_ascii()).and_then(|id| u32::try_from(id).ok());
            id = Some(value.ok_or_else(|| LineError::new(number, "ID is not a number"))?);
        } else if line.starts_with(b"field:") {
            format.fields.push(
                parse_field(&file::text(line))
                    .ok_or_else(|| LineError::new(number, "not a field of an event"))?,
            );
        } else if line.starts_with(b"print fmt:") {
            break;
        }
    }
    format.id = id.ok_or_else(|| LineError::new(last, "an event format without ID"))?;
    Ok(format)
}

/// `field:__data_loc char[] name; offset:24; size:4; signed:0;`: old kernels have no `signed`.
fn parse_field(line: &str) -> Option<Field> {
    let (mut declaration, mut offset, mut size, mut signed) = (None, None, None, false);
    for part in line.split(';') {
        match part.trim().split_once(':') {
            Some(("field", text)) => declaration = Some(text.trim()),
            Some(("offset", text)) => offset = text.parse().ok(),
            Some(("size", text)) => size = text.parse().ok(),
            Some(("signed", text)) => signed = text == "1",
            _ => {}
        }
    }
    let declaration = declaration?;
    let (type_name, name) = declaration.rsplit_once([' ', '*'])?;
    // The separator belongs to the type when it is the star of a pointer.
    let star = declaration[type_name.len()..].starts_with('*');
    let (name, array) = match name.split_once('[') {
        Some((name, length)) => (name, format!("[{length}")),
        None => (name, String::new()),
    };
    if name.is_empty() {
        return None;
    }
    Some(Field {
        name: name.to_owned(),
        type_name: format!(
            "{}{}{array}",
            type_name.trim_end(),
            if star { " *" } else { "" }
        ),
        offset: offset?,
        size: size?,
        signed,
        data_loc: type_name.starts_with("__data_loc"),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// kmem:kmem_cache_alloc of 6.18, shortened; the last two fields are of other events.
    const FORMAT: &[u8] = b"name: kmem_cache_alloc
ID: 659
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:const void * ptr;\toffset:16;\tsize:8;\tsigned:0;
\tfield:__data_loc char[] name;\toffset:24;\tsize:4;\tsigned:0;
\tfield:bool accounted;\toffset:60;\tsize:1;\tsigned:0;
\tfield:char comm[16];\toffset:64;\tsize:16;
\tfield:struct page *page;\toffset:80;\tsize:8;\tsigned:0;

print fmt: \"field:x\", REC->ptr
";

    #[test]
    fn fields_keep_their_place_and_type() {
        let format = parse_format(FORMAT).expect("valid");
        assert_eq!((format.name.as_str(), format.id), ("kmem_cache_alloc", 659));
        let shape = |name: &str| {
            let f = format.field(name).expect("field");
            (f.type_name.as_str(), f.offset, f.size, f.signed, f.data_loc)
        };
        assert_eq!(shape("common_pid"), ("int", 4, 4, true, false));
        assert_eq!(shape("ptr"), ("const void *", 16, 8, false, false));
        assert_eq!(shape("name"), ("__data_loc char[]", 24, 4, false, true));
        assert_eq!(shape("comm"), ("char[16]", 64, 16, false, false));
        assert_eq!(shape("page"), ("struct page *", 80, 8, false, false));
        assert_eq!(format.fields.len(), 7);
    }

    #[test]
    fn a_format_that_is_cut_off_is_refused_with_its_line() {
        assert_eq!(parse_format(b"").map_err(|e| e.line), Err(0));
        assert_eq!(parse_format(b"name: x\n").map_err(|e| e.line), Err(1));
        let cut = b"name: x\nID: 1\nformat:\n\tfield:int pid;\toffset:";
        assert_eq!(parse_format(cut).map_err(|e| e.line), Err(4));
        assert!(parse_format(b"ID: 99999999999\n").is_err());
        assert!(parse_format(b"ID: 1\nfield:int;offset:0;size:4;\n").is_err());
    }

    #[test]
    fn the_usual_place_is_preferred_and_none_is_an_error() {
        let mounts = |text: &str| mountinfo::parse(text.as_bytes()).expect("valid");
        let both = mounts(
            "43 23 0:13 / /elsewhere rw - tracefs nodev rw\n\
             42 23 0:13 / /sys/kernel/tracing rw - tracefs nodev rw\n",
        );
        let root = Tracefs::among(&both).map(|tracefs| tracefs.root);
        assert_eq!(root, Some(PathBuf::from("/sys/kernel/tracing")));
        let other = Tracefs::among(&both[..1]).map(|tracefs| tracefs.root);
        assert_eq!(other, Some(PathBuf::from("/elsewhere")));
        assert_eq!(Tracefs::among(&[]), None);
    }

    #[test]
    fn an_event_that_is_not_there_is_told_from_an_unreadable_one() {
        let tracefs = Tracefs {
            root: PathBuf::from("/nowhere"),
        };
        assert!(matches!(
            tracefs.event_format("kmem", "kfree"),
            Err(TracefsError::NoEvent { .. })
        ));
        assert!(!tracefs.event_exists("kmem", "kfree"));
        assert!(tracefs.events("kmem").is_ok_and(|events| events.is_empty()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_format(&bytes);
        }

        #[test]
        fn nor_do_fields_that_look_almost_right(text in "ID: 1\n(field:[a-z *\\[\\];:é]{0,20};offset:[0-9]{0,11};size:[0-9]{0,3};\n){0,3}") {
            let _ = parse_format(text.as_bytes());
        }
    }
}
