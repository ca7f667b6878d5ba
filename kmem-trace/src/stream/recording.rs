//! Recorded runs: the wire records of a trace behind a header, so that everything from here on
//! also runs without root and without BPF.

use std::io::{self, Write};

use bytes::{Buf, Bytes};
use kmem_trace_ebpf::WIRE_VERSION;
use thiserror::Error;

use super::decode::Batch;

const MAGIC: [u8; 8] = *b"kmemtrc\0";
const HEADER_BYTES: usize = 16;

/// Why a file is not a recording.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RecordingError {
    #[error("not a recording of kmem-trace: it begins with other bytes")]
    Magic,
    #[error("recorded with wire version {found}, this kmem-trace reads {WIRE_VERSION}")]
    Version { found: u32 },
}

/// Writes batches as they come.
pub struct Recorder<W: Write> {
    out: W,
}

impl<W: Write> Recorder<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&MAGIC)?;
        out.write_all(&WIRE_VERSION.to_ne_bytes())?;
        out.write_all(&[0; 4])?;
        Ok(Self { out })
    }

    /// Adds a batch.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn add(&mut self, batch: &Batch) -> io::Result<()> {
        self.out.write_all(batch.as_bytes())
    }

    /// Brings everything to the file.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn finish(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The records of a recorded file.
///
/// # Errors
/// Where the header is not that of a recording, or of another version of the wire.
pub fn read(mut file: Bytes) -> Result<Batch, RecordingError> {
    if file.len() < HEADER_BYTES || file[..MAGIC.len()] != MAGIC {
        return Err(RecordingError::Magic);
    }
    file.advance(MAGIC.len());
    let found = file.get_u32_ne();
    if found != WIRE_VERSION {
        return Err(RecordingError::Version { found });
    }
    file.advance(4);
    Ok(Batch::new(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_is_read_back_as_it_was() {
        let mut file = Vec::new();
        let mut recorder = Recorder::new(&mut file).expect("a vector takes everything");
        recorder
            .add(&Batch::new(Bytes::from_static(&[1, 2, 3, 4, 5, 6, 7, 8])))
            .expect("likewise");
        let batch = read(file.into()).expect("just written");
        assert_eq!(&batch.as_bytes()[..], [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn another_file_and_another_version_are_refused() {
        assert_eq!(
            read(Bytes::from_static(b"\x7fELF")).err(),
            Some(RecordingError::Magic)
        );
        let mut file = Vec::new();
        Recorder::new(&mut file).expect("a vector takes everything");
        file[8] = 99;
        assert!(matches!(
            read(file.into()),
            Err(RecordingError::Version { .. })
        ));
    }
}
