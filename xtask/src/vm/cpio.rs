//! Writes a cpio archive in the `newc` format, the one that the kernel unpacks as its initramfs
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Not compressed: the kernel
//! then needs no decompressor, and unpacking it is a copy.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive that is being written. Parent folders come into being by themselves.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// Adds the folder at the absolute `path`, and its parents.
    pub fn folder(&mut self, path: &str) -> Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || self.folders.contains(path) {
            return Ok(());
        }
        self.parent(path)?;
        self.folders.insert(path.to_owned());
        self.entry(path, FOLDER | 0o755, (0, 0), &[])
    }

    /// Adds a file with these permission bits.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> Result<()> {
        let path = path.trim_matches('/');
        self.parent(path)?;
        self.entry(path, FILE | permissions, (0, 0), content)
    }

    /// Adds a symbolic link at `path` that points to `target`.
    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let path = path.trim_matches('/');
        self.parent(path)?;
        self.entry(path, LINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device with its major and minor number.
    pub fn character_device(&mut self, path: &str, number: (u32, u32)) -> Result<()> {
        let path = path.trim_matches('/');
        self.parent(path)?;
        self.entry(path, CHARACTER_DEVICE | 0o600, number, &[])
    }

    /// Ends the archive and returns its bytes.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn parent(&mut self, path: &str) -> Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.folder(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len())
            .with_context(|| format!("/{name} is too large for an initramfs (4 GiB at most)"))?;
        self.entries += 1;
        let name_size = u32::try_from(name.len() + 1).context("a path of more than 4 GiB")?;
        self.bytes.extend_from_slice(b"070701");
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name size,
        // checksum. A fixed mtime: the same content gives the same archive.
        for field in [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            name_size,
            0,
        ] {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    /// Header with name, and content, each end at a multiple of four.
    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Header fields and name of each entry, read back independently of the writer.
    fn read(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        while at < archive.len() {
            assert_eq!(&archive[at..at + 6], b"070701");
            let field = |index: usize| {
                let start = at + 6 + index * 8;
                let text = std::str::from_utf8(&archive[start..start + 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = &archive[at + 110..at + 110 + name_size - 1];
            assert_eq!(archive[at + 110 + name_size - 1], 0);
            let content = (at + 110 + name_size).next_multiple_of(4);
            let name = String::from_utf8(name.to_vec()).unwrap();
            entries.push((name, mode, archive[content..content + size].to_vec()));
            at = (content + size).next_multiple_of(4);
        }
        entries
    }

    #[test]
    fn folders_above_a_file_are_written_once_and_before_it() {
        let mut archive = Archive::default();
        archive.file("/a/b/one", 0o755, b"1").unwrap();
        archive.file("/a/b/two", 0o644, b"22222").unwrap();
        archive.link("/a/three", "b/one").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(
            read(&bytes),
            [
                ("a".into(), 0o040_755, vec![]),
                ("a/b".into(), 0o040_755, vec![]),
                ("a/b/one".into(), 0o100_755, b"1".to_vec()),
                ("a/b/two".into(), 0o100_644, b"22222".to_vec()),
                ("a/three".into(), 0o120_777, b"b/one".to_vec()),
                ("TRAILER!!!".into(), 0, vec![]),
            ]
        );
    }

    #[test]
    fn an_empty_archive_is_only_its_trailer() {
        let bytes = Archive::default().finish().unwrap();
        assert_eq!(read(&bytes), [("TRAILER!!!".into(), 0, vec![])]);
        assert_eq!(bytes.len() % 4, 0);
    }
}
