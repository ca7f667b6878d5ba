//! aya's loader and its reading of type information, each made once in a process: the loader reads
//! the kernel's types when it is made, asked or not (`EbpfLoader::new`), and each reading takes as
//! long as all else that is read from the kernel.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Result, anyhow};
use aya::{Btf, EbpfLoader};

use super::allowed::cause;

type Loader = EbpfLoader<'static>;
type Types = Result<Option<Arc<Btf>>, String>;

static LOADER: Mutex<Option<Loader>> = Mutex::new(None);
static TYPES: Mutex<Option<Types>> = Mutex::new(None);

/// Makes both beside whatever the caller does meanwhile. `file` holds the types to go by instead of
/// the kernel's own.
pub fn begin(file: Option<&Path>) {
    let file = file.map(Path::to_owned);
    // Whoever needs them makes them if there can be no thread, and hears what is wrong with them.
    let thread = thread::Builder::new;
    let _ = thread().spawn(|| with(|_| ()));
    let _ = thread().spawn(move || types(file.as_deref()).is_ok());
}

/// Lets go of both: some 20 MiB. Whoever asks later has them made again.
pub fn end() {
    drop(lock(&LOADER).take());
    drop(lock(&TYPES).take());
    // They were many small pieces, which the allocator would keep.
    unsafe { libc::malloc_trim(0) };
}

/// Something done with the loader. It keeps what it was told for the next object: whoever uses it
/// sets all that the object takes.
pub fn with<T>(what: impl FnOnce(&mut Loader) -> T) -> T {
    what(lock(&LOADER).get_or_insert_with(EbpfLoader::new))
}

/// The types as aya wants them; `None` where the kernel has none. All calls name the same file.
///
/// # Errors
/// In one line, where the file is not what was asked for.
pub fn types(file: Option<&Path>) -> Result<Option<Arc<Btf>>> {
    let mut types = lock(&TYPES);
    let types = types.get_or_insert_with(|| read(file).map(|btf| btf.map(Arc::new)));
    types.clone().map_err(|why| anyhow!("{why}"))
}

fn lock<T>(what: &'static Mutex<T>) -> MutexGuard<'static, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
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
