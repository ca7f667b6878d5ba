//! Machine code of the running kernel as it stands in memory, from `/proc/kcore`: what the build
//! made of it, with what the kernel patched into it since.
//!
//! Not here: what the code means (see `hooks::site`).

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use object::{
    LittleEndian,
    elf::{FileHeader64, PT_LOAD},
    read::elf::{FileHeader as _, ProgramHeader as _},
};
use thiserror::Error;

/// Where the kernel shows its memory as a core file.
pub const KCORE: &str = "/proc/kcore";
/// The headers come first; there are some dozen of 56 bytes each.
const HEADER_BYTES: usize = 1 << 16;

/// The kernel's code cannot be read.
#[derive(Debug, Error)]
pub enum TextError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: not a core file: {why}", path.display())]
    Format { path: PathBuf, why: String },
    #[error("{} does not show address {address:#x}", path.display())]
    NotShown { path: PathBuf, address: u64 },
}

/// The kernel's memory, opened.
#[derive(Debug)]
pub struct Kcore {
    file: File,
    path: PathBuf,
    segments: Vec<Segment>,
}

/// A stretch of memory that the core file shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub address: u64,
    pub bytes: u64,
    /// Bytes from the start of the file.
    pub offset: u64,
}

impl Kcore {
    /// Opens [`KCORE`].
    ///
    /// # Errors
    /// [`TextError`]: no such file, no permission, lockdown.
    pub fn open() -> Result<Self, TextError> {
        Self::of(Path::new(KCORE))
    }

    fn of(path: &Path) -> Result<Self, TextError> {
        let read = |source| TextError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(read)?;
        let mut header = vec![0; HEADER_BYTES];
        let mut filled = 0;
        while filled < header.len() {
            match file.read_at(&mut header[filled..], filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read(error)),
            }
        }
        let segments = segments(&header[..filled]).map_err(|why| TextError::Format {
            path: path.to_owned(),
            why,
        })?;
        Ok(Self {
            file,
            path: path.to_owned(),
            segments,
        })
    }

    /// `bytes` bytes of kernel memory at `address`.
    ///
    /// # Errors
    /// [`TextError`].
    pub fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>, TextError> {
        let offset =
            place(&self.segments, address, bytes as u64).ok_or_else(|| TextError::NotShown {
                path: self.path.clone(),
                address,
            })?;
        let mut code = vec![0; bytes];
        self.file
            .read_exact_at(&mut code, offset)
            .map_err(|source| TextError::Read {
                path: self.path.clone(),
                source,
            })?;
        Ok(code)
    }
}

/// Where in the file `bytes` bytes of memory at an address are; `None` unless all of them are shown.
pub fn place(segments: &[Segment], address: u64, bytes: u64) -> Option<u64> {
    segments.iter().find_map(|segment| {
        let within = address.checked_sub(segment.address)?;
        let fits = within
            .checked_add(bytes)
            .is_some_and(|end| end <= segment.bytes);
        fits.then(|| segment.offset.checked_add(within)).flatten()
    })
}

/// What a core file shows, from its headers.
///
/// # Errors
/// In a few words, why the headers are not those of a core file.
pub fn segments(header: &[u8]) -> Result<Vec<Segment>, String> {
    let elf = FileHeader64::<LittleEndian>::parse(header).map_err(|error| error.to_string())?;
    let programs = elf
        .program_headers(LittleEndian, header)
        .map_err(|error| error.to_string())?;
    Ok(programs
        .iter()
        .filter(|program| program.p_type(LittleEndian) == PT_LOAD)
        .map(|program| Segment {
            address: program.p_vaddr(LittleEndian),
            bytes: program.p_memsz(LittleEndian),
            offset: program.p_offset(LittleEndian),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A core file with one segment, as the kernel writes it (fs/proc/kcore.c).
    fn core(address: u64, code: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
        bytes.resize(16, 0);
        bytes.extend(4u16.to_le_bytes()); // ET_CORE
        bytes.extend(62u16.to_le_bytes()); // x86-64
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(64u64.to_le_bytes()); // program headers
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        for half in [64u16, 56, 1, 0, 0, 0] {
            bytes.extend(half.to_le_bytes());
        }
        bytes.extend(PT_LOAD.to_le_bytes());
        bytes.extend(7u32.to_le_bytes());
        for word in [120, address, 0, code.len() as u64, code.len() as u64, 0] {
            bytes.extend(word.to_le_bytes());
        }
        assert_eq!(bytes.len(), 120);
        bytes.extend(code);
        bytes
    }

    #[test]
    fn code_is_found_by_its_address() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let base = 0xffff_ffff_8100_0000;
        file.write_all(&core(base, b"0123456789")).expect("written");
        let kcore = Kcore::of(file.path()).expect("a core file");
        assert_eq!(kcore.read(base + 3, 4).expect("shown"), b"3456");
        assert!(matches!(
            kcore.read(base + 8, 4),
            Err(TextError::NotShown { .. })
        ));
        assert!(matches!(
            kcore.read(base - 1, 1),
            Err(TextError::NotShown { .. })
        ));
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(b"not a core file").expect("written");
        let error = Kcore::of(file.path()).expect_err("not ELF");
        assert!(matches!(error, TextError::Format { .. }), "{error}");
    }
}
