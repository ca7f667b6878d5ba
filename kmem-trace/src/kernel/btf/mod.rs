//! Questions to the kernel's type information (BTF): where a member lies, how big a type is, what
//! an enum item is worth, what a function takes.
//!
//! Lives here: name → fact, with a typed error where the kernel has no such thing. Does not live
//! here: which members or functions somebody wants (that is the hook table's and the loader's
//! business). Data comes from `/sys/kernel/btf/vmlinux` or a file the user names.
//!
//! `btf_rs`'s memory-mapped backend is used: it only notes where each type starts (about 1 ms for
//! a whole kernel, the caching backend takes 120). It goes through all names for each that is asked,
//! so we index them, in one pass over the types. sysfs lets BTF be mapped since
//! Linux 6.16 only, so where mapping fails the file is copied into a memfd first.

mod types;

#[cfg(test)]
pub(crate) mod build;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fs::File,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use btf_rs::{Backend, Btf, BtfType, Type};
use thiserror::Error;

/// Why a question to BTF has no answer.
#[derive(Debug, Error)]
pub enum BtfError {
    #[error(
        "cannot read kernel type information {}: {source}; give a BTF file of this kernel with --btf",
        path.display()
    )]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: not usable as BTF: {why}", path.display())]
    Parse { path: PathBuf, why: String },
    /// The kernel has no such thing; `what` is a whole sentence.
    #[error("{what}")]
    Missing { what: String },
    #[error("{what} is defined in different ways in this kernel's BTF: {first} / {second}")]
    Ambiguous {
        what: String,
        first: String,
        second: String,
    },
}

pub type Result<T> = std::result::Result<T, BtfError>;

/// Where a member of a struct lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Bytes from the start of the outermost struct. For a bit field: the byte of its first bit.
    pub offset: u32,
    /// Bytes; the whole array for arrays, the declared type for bit fields, 0 for flexible arrays.
    pub size: u32,
    /// As C would write it, for example `struct cgroup *`.
    pub type_name: String,
    /// Number of elements, for arrays. `size / array_len` is the stride.
    pub array_len: Option<u32>,
    /// Set when the member is a bit field: it cannot be read as `size` bytes at `offset`.
    pub bits: Option<Bits>,
}

/// A bit field within the bytes at [`Member::offset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits {
    /// Bit number within the byte at `offset`, 0 to 7.
    pub first: u32,
    /// Number of bits.
    pub width: u32,
}

/// The prototype of a kernel function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    pub params: Vec<Param>,
    /// `void` with size 0 for functions that return nothing.
    pub returns: Value,
}

impl Function {
    /// Position of the parameter called `name`, from 0.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.params.iter().position(|param| param.name == name)
    }
}

/// One parameter; its name is empty where BTF has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    pub name: String,
    pub type_name: String,
    /// Bytes.
    pub size: u32,
    pub signed: bool,
}

/// What a function returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub type_name: String,
    /// Bytes; 0 for `void`.
    pub size: u32,
    pub signed: bool,
}

/// The type information of one kernel.
pub struct KernelBtf {
    btf: Btf,
    path: PathBuf,
    index: Index,
}

/// Where names are, of all types.
#[derive(Debug, Default)]
struct Index {
    /// Hash of a name and the id of a type that has it, in order.
    names: Vec<(u64, u32)>,
    enum_items: HashMap<String, Vec<EnumItem>>,
}

/// An item and the type id of the enum it is in.
#[derive(Clone, Copy, Debug)]
struct EnumItem {
    enum_id: u32,
    value: i64,
}

impl KernelBtf {
    /// Where a running kernel shows its BTF.
    pub const VMLINUX: &'static str = "/sys/kernel/btf/vmlinux";

    /// Opens a raw BTF file (not an ELF file that contains one).
    ///
    /// # Errors
    /// [`BtfError::Read`] if there is no such file or it cannot be read, [`BtfError::Parse`] if it
    /// is no BTF.
    pub fn load(path: &Path) -> Result<KernelBtf> {
        let btf = match Btf::from_file_with_backend(path, Backend::Mmap) {
            Ok(btf) => btf,
            Err(btf_rs::Error::IO(_)) => {
                let bytes = std::fs::read(path).map_err(|source| BtfError::Read {
                    path: path.to_owned(),
                    source,
                })?;
                return KernelBtf::from_bytes(&bytes, path);
            }
            Err(error) => return Err(unusable(path, error)),
        };
        KernelBtf::new(btf, path)
    }

    /// As [`KernelBtf::load`], from bytes; `path` is only named in errors.
    ///
    /// # Errors
    /// As [`KernelBtf::load`].
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<KernelBtf> {
        // Bytes go through a memfd because the fast backend reads mapped files only.
        let file = memfd(bytes).map_err(|source| BtfError::Read {
            path: path.to_owned(),
            source,
        })?;
        let copy = format!("/proc/self/fd/{}", file.as_raw_fd());
        let btf = Btf::from_file_with_backend(copy, Backend::Mmap)
            .map_err(|error| unusable(path, error))?;
        KernelBtf::new(btf, path)
    }

    fn new(btf: Btf, path: &Path) -> Result<KernelBtf> {
        let mut btf = KernelBtf {
            btf,
            path: path.to_owned(),
            index: Index::default(),
        };
        btf.index = btf.indexed()?;
        Ok(btf)
    }

    /// The file this came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Finds a member of a struct, union or typedef of one.
    ///
    /// `path` may be dotted (`css.cgroup`): it descends through embedded structs, never through
    /// pointers. Members of anonymous structs and unions are found as in C.
    ///
    /// # Errors
    /// [`BtfError::Missing`] if there is no such struct or member, or the path would have to follow
    /// a pointer; [`BtfError::Ambiguous`] if structs of that name disagree about it.
    pub fn member(&self, strukt: &str, path: &str) -> Result<Member> {
        let mut found: Option<Member> = None;
        let mut missing = None;
        for id in self.struct_ids(strukt)? {
            match self.member_of(id, strukt, path) {
                Ok(member) => match &found {
                    Some(first) if *first != member => {
                        return Err(BtfError::Ambiguous {
                            what: format!("member {path} of struct {strukt}"),
                            first: format!("{} at byte {}", first.type_name, first.offset),
                            second: format!("{} at byte {}", member.type_name, member.offset),
                        });
                    }
                    Some(_) => {}
                    None => found = Some(member),
                },
                // A namesake without this member does not matter if another one has it.
                Err(error @ BtfError::Missing { .. }) => missing = Some(error),
                Err(error) => return Err(error),
            }
        }
        found.ok_or_else(|| missing.unwrap_or_else(|| no_struct(strukt)))
    }

    /// Whether [`KernelBtf::member`] has an answer.
    pub fn has_member(&self, strukt: &str, path: &str) -> bool {
        self.member(strukt, path).is_ok()
    }

    /// Size in bytes of a struct, union or typedef of one.
    ///
    /// # Errors
    /// [`BtfError::Missing`] or [`BtfError::Ambiguous`].
    pub fn size_of(&self, strukt: &str) -> Result<u32> {
        let mut found = None;
        for id in self.struct_ids(strukt)? {
            let size = self.size(id)?;
            match found {
                Some(first) if first != size => {
                    return Err(BtfError::Ambiguous {
                        what: format!("size of struct {strukt}"),
                        first: format!("{first} bytes"),
                        second: format!("{size} bytes"),
                    });
                }
                _ => found = Some(size),
            }
        }
        found.ok_or_else(|| no_struct(strukt))
    }

    /// Value of an enum item, in the enum called `enum_name` or, with `None`, in whichever enum
    /// (named or not) has it.
    ///
    /// BTF made before Linux 6.0 does not say whether an enum is signed: there, negative items come
    /// back as their 32-bit unsigned pattern.
    ///
    /// # Errors
    /// [`BtfError::Missing`], [`BtfError::Ambiguous`] if enums disagree about it.
    pub fn enum_value(&self, enum_name: Option<&str>, item: &str) -> Result<i64> {
        let Some(enum_name) = enum_name else {
            return self.agreed_item(item, |_| true);
        };
        let mut known = false;
        let mut found: Option<i64> = None;
        for id in self.ids(enum_name)? {
            let Some(items) = self.items_of(&self.type_of(id)?) else {
                continue;
            };
            known = true;
            for (_, value) in items.iter().filter(|(name, _)| name == item) {
                match found {
                    Some(first) if first != *value => {
                        return Err(BtfError::Ambiguous {
                            what: format!("item {item} of enum {enum_name}"),
                            first: first.to_string(),
                            second: value.to_string(),
                        });
                    }
                    _ => found = Some(*value),
                }
            }
        }
        found.ok_or_else(|| {
            missing(if known {
                format!("enum {enum_name} has no item {item} in this kernel's BTF")
            } else {
                format!("there is no enum {enum_name} in this kernel's BTF")
            })
        })
    }

    /// Names and values of an enum's items, in its order; of all enums of that name. Empty where there
    /// is none.
    pub fn enum_items(&self, enum_name: &str) -> Vec<(String, i64)> {
        let ids = self.ids(enum_name).unwrap_or_default();
        let items = |id| self.items_of(&self.type_of(id).ok()?);
        ids.into_iter().filter_map(items).flatten().collect()
    }

    /// Value of an enum item in an enum that also has `sibling`: how to ask for an anonymous enum
    /// whose items others have too. The memory controller's `RES_LIMIT` is the one beside
    /// `RES_SOFT_LIMIT`; the hugetlb controller has another.
    ///
    /// # Errors
    /// As [`KernelBtf::enum_value`].
    pub fn enum_value_beside(&self, item: &str, sibling: &str) -> Result<i64> {
        let siblings = self.index.enum_items.get(sibling);
        self.agreed_item(item, |enum_id| {
            siblings.is_some_and(|all| all.iter().any(|one| one.enum_id == enum_id))
        })
    }

    fn agreed_item(&self, item: &str, accept: impl Fn(u32) -> bool) -> Result<i64> {
        let mut found: Option<i64> = None;
        let items = &self.index.enum_items;
        let all = items.get(item).map_or(&[][..], Vec::as_slice);
        for one in all.iter().filter(|one| accept(one.enum_id)) {
            match found {
                Some(first) if first != one.value => {
                    return Err(BtfError::Ambiguous {
                        what: format!("enum item {item}"),
                        first: first.to_string(),
                        second: one.value.to_string(),
                    });
                }
                _ => found = Some(one.value),
            }
        }
        found.ok_or_else(|| {
            missing(format!(
                "no such enum has an item {item} in this kernel's BTF"
            ))
        })
    }

    /// Prototype of a function. Several functions of one name (static ones of different files) are
    /// one answer if their prototypes agree.
    ///
    /// # Errors
    /// [`BtfError::Missing`], [`BtfError::Ambiguous`].
    pub fn function(&self, name: &str) -> Result<Function> {
        let mut found: Option<Function> = None;
        for id in self.ids(name)? {
            let Type::Func(func) = self.type_of(id)? else {
                continue;
            };
            let proto = func.get_type_id().unwrap_or_default();
            let Type::FuncProto(proto) = self.type_of(proto)? else {
                return Err(self.broken(format!("function {name} has no prototype")));
            };
            let function = self.prototype(&proto)?;
            match &found {
                Some(first) if *first != function => {
                    return Err(BtfError::Ambiguous {
                        what: format!("function {name}"),
                        first: types::signature(first),
                        second: types::signature(&function),
                    });
                }
                _ => found = Some(function),
            }
        }
        found.ok_or_else(|| missing(format!("function {name} is not in this kernel's BTF")))
    }

    /// Whether there is a function of that name, whatever its prototype.
    pub fn has_function(&self, name: &str) -> bool {
        self.ids(name).is_ok_and(|ids| {
            ids.iter()
                .any(|id| matches!(self.type_of(*id), Ok(Type::Func(_))))
        })
    }

    /// Type id of the one function of that name.
    pub fn function_id(&self, name: &str) -> Option<u32> {
        let ids = self.ids(name).ok()?;
        let mut functions = ids
            .into_iter()
            .filter(|id| matches!(self.type_of(*id), Ok(Type::Func(_))));
        let id = functions.next()?;
        functions.next().is_none().then_some(id)
    }

    /// Type id of the one struct of that name.
    pub fn struct_id(&self, name: &str) -> Option<u32> {
        match self.struct_ids(name).ok()?[..] {
            [id] => Some(id),
            _ => None,
        }
    }

    /// Whether there is a struct, union or typedef of one of that name.
    pub fn has_struct(&self, name: &str) -> bool {
        self.struct_ids(name).is_ok()
    }

    /// Type ids that carry this name, of any kind.
    fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let names = &self.index.names;
        let hash = hash_of(name);
        let from = names.partition_point(|(one, _)| *one < hash);
        let mut ids = Vec::new();
        for (_, id) in names[from..].iter().take_while(|(one, _)| *one == hash) {
            if self.type_name(&self.type_of(*id)?).as_deref() == Some(name) {
                ids.push(*id);
            }
        }
        Ok(ids)
    }
}

fn hash_of(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

fn memfd(bytes: &[u8]) -> io::Result<File> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let mut file = File::from(memfd_create(c"btf", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file)
}

fn unusable(path: &Path, error: btf_rs::Error) -> BtfError {
    BtfError::Parse {
        path: path.to_owned(),
        why: error.to_string(),
    }
}

fn missing(what: String) -> BtfError {
    BtfError::Missing { what }
}

fn no_struct(name: &str) -> BtfError {
    missing(format!("there is no struct {name} in this kernel's BTF"))
}
