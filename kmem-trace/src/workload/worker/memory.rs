//! Anonymous memory that is touched, and page cache of a file that has no name any more.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::Path,
    process,
};

const CHUNK_BYTES: usize = 1 << 20;
static CHUNK: [u8; 64 * 1024] = [0x5a; 64 * 1024];

/// What was made so far; gone when dropped.
#[derive(Debug, Default)]
pub struct Made {
    anon: Vec<u8>,
    file: Option<File>,
    file_bytes: u64,
}

impl Made {
    pub fn bytes(&self) -> u64 {
        self.anon.len() as u64 + self.file_bytes
    }
}

/// Touches `bytes` of anonymous memory. Tells about each MiB or so.
pub fn anon(made: &mut Made, bytes: u64, tell: &mut dyn FnMut(u64)) -> io::Result<()> {
    let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    made.anon
        .try_reserve_exact(bytes)
        .map_err(|_| io::ErrorKind::OutOfMemory)?;
    while made.anon.len() < bytes {
        made.anon
            .resize(bytes.min(made.anon.len() + CHUNK_BYTES), 0x5a);
        tell(made.bytes());
    }
    Ok(())
}

/// Writes `bytes` to a new file in `dir`, whose name is removed at once, and writes them out to
/// the disk so that nothing moves afterwards.
pub fn page_cache(
    made: &mut Made,
    bytes: u64,
    dir: &Path,
    tell: &mut dyn FnMut(u64),
) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let path = dir.join(format!(".kmem-trace-{}", process::id()));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    fs::remove_file(&path)?;
    while made.file_bytes < bytes {
        let rest = usize::try_from(bytes - made.file_bytes).unwrap_or(usize::MAX);
        file.write_all(&CHUNK[..rest.min(CHUNK.len())])?;
        made.file_bytes += rest.min(CHUNK.len()) as u64;
        if made.file_bytes.is_multiple_of(CHUNK_BYTES as u64) {
            tell(made.bytes());
        }
    }
    file.sync_data()?;
    made.file = Some(file);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_cache_file_has_its_bytes_and_no_name() {
        let dir = std::env::temp_dir();
        let mut made = Made::default();
        page_cache(&mut made, 100_001, &dir, &mut |_| {}).unwrap();
        assert_eq!(made.bytes(), 100_001);
        assert_eq!(
            made.file.as_ref().unwrap().metadata().unwrap().len(),
            100_001
        );
        assert!(!dir.join(format!(".kmem-trace-{}", process::id())).exists());
    }

    #[test]
    fn anonymous_memory_is_told_as_it_grows() {
        let (mut made, mut told) = (Made::default(), Vec::new());
        anon(&mut made, (2 << 20) + 5, &mut |bytes| told.push(bytes)).unwrap();
        assert_eq!(told, [1 << 20, 2 << 20, (2 << 20) + 5]);
    }
}
