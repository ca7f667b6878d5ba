//! aya's loader and its reading of type information, each made once in a process: the loader reads
//! the kernel's types when it is made, asked or not (`EbpfLoader::new`), and each reading takes as
//! long as all else that is read from the kernel.

use std::{
    path::Path,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
};

use anyhow::{Result, anyhow};
use aya::{Btf, EbpfLoader};

use super::allowed::cause;

type Loader = EbpfLoader<'static>;

static LOADER: OnceLock<Mutex<Loader>> = OnceLock::new();
static TYPES: OnceLock<Result<Option<Btf>, String>> = OnceLock::new();

/// Makes both beside whatever the caller does meanwhile. `file` holds the types to go by instead of
/// the kernel's own.
pub fn begin(file: Option<&Path>) {
    let file = file.map(Path::to_owned);
    thread::spawn(move || {
        drop(loader());
        TYPES.get_or_init(|| read(file.as_deref()));
    });
}

/// The loader. It keeps what it was told for the next object: whoever uses it sets all that the
/// object takes.
pub fn loader() -> MutexGuard<'static, Loader> {
    LOADER
        .get_or_init(|| Mutex::new(EbpfLoader::new()))
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// The types as aya wants them; `None` where the kernel has none. All calls name the same file.
///
/// # Errors
/// In one line, where the file is not what was asked for.
pub fn types(file: Option<&Path>) -> Result<Option<&'static Btf>> {
    match TYPES.get_or_init(|| read(file)) {
        Ok(btf) => Ok(btf.as_ref()),
        Err(why) => Err(anyhow!("{why}")),
    }
}

fn read(file: Option<&Path>) -> Result<Option<Btf>, String> {
    let Some(file) = file else {
        return Ok(Btf::from_sys_fs().ok());
    };
    let read = Btf::parse_file(file, aya::Endianness::default());
    read.map(Some).map_err(|error| {
        format!(
            "{}: not usable as type information: {}",
            file.display(),
            cause(&error)
        )
    })
}
