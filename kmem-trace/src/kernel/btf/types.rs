//! Walking BTF types by id: sizes, members, C spelling. The public questions are in the parent.
//!
//! Every walk is bounded, so that a hostile file with a cycle ends in an error, not in a hang.

use btf_rs::{BtfType, FuncProto, Type};

use super::{
    Bits, BtfError, EnumItem, Function, Index, KernelBtf, Member, Param, Result, Value, hash_of,
    missing, no_struct,
};

/// Longest chain of typedefs, qualifiers, pointers and nested structs that is followed. The
/// kernel's own stay below 20.
const MAX_DEPTH: u32 = 64;

/// Most members looked at for one question, nested anonymous structs included.
const MAX_MEMBERS: u32 = 100_000;

impl KernelBtf {
    pub(super) fn broken(&self, why: String) -> BtfError {
        BtfError::Parse {
            path: self.path.clone(),
            why,
        }
    }

    pub(super) fn type_of(&self, id: u32) -> Result<Type> {
        self.btf
            .resolve_type_by_id(id)
            .map_err(|error| self.broken(error.to_string()))
    }

    /// Name of a type or member; empty for anonymous ones.
    fn name(&self, of: &dyn BtfType) -> String {
        self.btf.resolve_name(of).unwrap_or_default()
    }

    /// Ids of structs and unions of that name; if there are none, of typedefs that lead to one.
    pub(super) fn struct_ids(&self, name: &str) -> Result<Vec<u32>> {
        let (mut structs, mut typedefs) = (Vec::new(), Vec::new());
        for id in self.ids(name)? {
            match self.type_of(id)? {
                Type::Struct(_) | Type::Union(_) => structs.push(id),
                Type::Typedef(_) => {
                    let (target, to) = self.strip(id)?;
                    if matches!(to, Type::Struct(_) | Type::Union(_)) {
                        typedefs.push(target);
                    }
                }
                _ => {}
            }
        }
        let ids = if structs.is_empty() {
            typedefs
        } else {
            structs
        };
        if ids.is_empty() {
            return Err(no_struct(name));
        }
        Ok(ids)
    }

    /// Takes typedefs, qualifiers and tags off.
    fn strip(&self, mut id: u32) -> Result<(u32, Type)> {
        for _ in 0..MAX_DEPTH {
            let inner = match self.type_of(id)? {
                Type::Typedef(t) => t.get_type_id(),
                Type::Const(t) | Type::Volatile(t) | Type::Restrict(t) => t.get_type_id(),
                Type::TypeTag(t) => t.get_type_id(),
                other => return Ok((id, other)),
            };
            id = inner.unwrap_or_default();
        }
        Err(self.broken(format!("type {id} refers to itself")))
    }

    /// Bytes of a type; 0 for `void` and functions.
    pub(super) fn size(&self, id: u32) -> Result<u32> {
        let mut id = id;
        let mut factor = 1u64;
        for _ in 0..MAX_DEPTH {
            let size = match self.strip(id)?.1 {
                Type::Int(t) => t.size(),
                Type::Float(t) => t.size(),
                Type::Enum(t) => t.size(),
                Type::Enum64(t) => t.size(),
                Type::Struct(t) | Type::Union(t) => t.size(),
                // BTF does not say; it describes the machine it is used on.
                Type::Ptr(_) => size_of::<usize>(),
                Type::Array(t) => {
                    factor = factor.saturating_mul(t.len() as u64);
                    id = t.get_type_id().unwrap_or_default();
                    continue;
                }
                _ => 0,
            };
            return u32::try_from(factor.saturating_mul(size as u64))
                .map_err(|_| self.broken(format!("type {id} is larger than 4 GiB")));
        }
        Err(self.broken(format!("array type {id} contains itself")))
    }

    fn is_signed(&self, id: u32) -> Result<bool> {
        Ok(match self.strip(id)?.1 {
            Type::Int(t) => t.is_signed(),
            Type::Enum(t) => t.is_signed(),
            Type::Enum64(t) => t.is_signed(),
            _ => false,
        })
    }

    /// Follows a dotted path from struct `id`, called `strukt` in errors.
    pub(super) fn member_of(&self, id: u32, strukt: &str, path: &str) -> Result<Member> {
        let mut within = id;
        let mut base = 0u64;
        let mut holder = format!("struct {strukt}");
        let mut parts = path.split('.').peekable();
        while let Some(part) = parts.next() {
            let mut budget = MAX_MEMBERS;
            let Some((bit_offset, width, type_id)) =
                self.find(within, part, 0, MAX_DEPTH, &mut budget)?
            else {
                return Err(missing(format!(
                    "{holder} has no member {part} in this kernel's BTF"
                )));
            };
            base = base.saturating_add(bit_offset);
            let type_name = self.spell(type_id)?;
            if parts.peek().is_some() {
                let (inner, inner_type) = self.strip(type_id)?;
                if !matches!(inner_type, Type::Struct(_) | Type::Union(_)) {
                    return Err(missing(format!(
                        "member {part} of {holder} is a {type_name}, not an embedded struct, so {path} has no offset"
                    )));
                }
                within = inner;
                holder = type_name;
                continue;
            }
            let array_len = match self.strip(type_id)?.1 {
                Type::Array(array) => Some(
                    u32::try_from(array.len())
                        .map_err(|_| self.broken(format!("array {part} is too long")))?,
                ),
                _ => None,
            };
            return Ok(Member {
                offset: u32::try_from(base / 8)
                    .map_err(|_| self.broken(format!("{part} lies beyond 4 GiB")))?,
                size: self.size(type_id)?,
                type_name,
                array_len,
                bits: width.map(|width| Bits {
                    first: (base % 8) as u32,
                    width,
                }),
            });
        }
        Err(missing(format!("{holder} has no member without a name")))
    }

    /// Finds a direct member, or one of an anonymous struct or union: bit offset, width of a bit
    /// field, type id.
    fn find(
        &self,
        id: u32,
        name: &str,
        base: u64,
        depth: u32,
        budget: &mut u32,
    ) -> Result<Option<(u64, Option<u32>, u32)>> {
        let (Type::Struct(strukt) | Type::Union(strukt)) = self.strip(id)?.1 else {
            return Ok(None);
        };
        if depth == 0 || name.is_empty() {
            return Ok(None);
        }
        for member in &strukt.members {
            let Some(left) = budget.checked_sub(1) else {
                return Err(self.broken(format!("struct {id} has no end")));
            };
            *budget = left;
            let offset = base.saturating_add(u64::from(member.bit_offset()));
            let type_id = member.get_type_id().unwrap_or_default();
            let member_name = self.name(member);
            if member_name == name {
                let width = member.bitfield_size().filter(|width| *width != 0);
                return Ok(Some((offset, width, type_id)));
            }
            if member_name.is_empty()
                && let Some(hit) = self.find(type_id, name, offset, depth - 1, budget)?
            {
                return Ok(Some(hit));
            }
        }
        Ok(None)
    }

    pub(super) fn prototype(&self, proto: &FuncProto) -> Result<Function> {
        let mut params = Vec::with_capacity(proto.parameters.len());
        for param in &proto.parameters {
            let id = param.get_type_id().unwrap_or_default();
            params.push(if param.is_variadic() {
                Param {
                    name: "...".to_owned(),
                    type_name: "...".to_owned(),
                    size: 0,
                    signed: false,
                }
            } else {
                Param {
                    name: self.name(param),
                    type_name: self.spell(id)?,
                    size: self.size(id)?,
                    signed: self.is_signed(id)?,
                }
            });
        }
        let id = proto.return_type_id();
        Ok(Function {
            params,
            returns: Value {
                type_name: self.spell(id)?,
                size: self.size(id)?,
                signed: self.is_signed(id)?,
            },
        })
    }

    /// The type as C would write it. Tags (`__rcu`, `__percpu`) are left out.
    fn spell(&self, id: u32) -> Result<String> {
        self.spell_within(id, MAX_DEPTH)
    }

    fn spell_within(&self, id: u32, depth: u32) -> Result<String> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(self.broken(format!("type {id} refers to itself")));
        };
        let inner = |of: &dyn BtfType| self.spell_within(of.get_type_id().unwrap_or(0), depth);
        let tagged = |keyword: &str, of: &dyn BtfType| match self.name(of).as_str() {
            "" => format!("{keyword} (anonymous)"),
            name => format!("{keyword} {name}"),
        };
        let qualified = |keyword: &str, of: &dyn BtfType| {
            inner(of).map(|inner| {
                if inner.ends_with('*') {
                    format!("{inner} {keyword}")
                } else {
                    format!("{keyword} {inner}")
                }
            })
        };
        Ok(match self.type_of(id)? {
            Type::Void => "void".to_owned(),
            Type::Int(t) => self.name(&t),
            Type::Float(t) => self.name(&t),
            Type::Typedef(t) => self.name(&t),
            Type::Struct(t) => tagged("struct", &t),
            Type::Union(t) => tagged("union", &t),
            Type::Enum(t) => tagged("enum", &t),
            Type::Enum64(t) => tagged("enum", &t),
            Type::Fwd(t) => tagged(if t.is_union() { "union" } else { "struct" }, &t),
            Type::Const(t) => qualified("const", &t)?,
            Type::Volatile(t) => qualified("volatile", &t)?,
            Type::Restrict(t) => qualified("restrict", &t)?,
            Type::TypeTag(t) => inner(&t)?,
            Type::DeclTag(t) => inner(&t)?,
            Type::Array(t) => format!("{}[{}]", inner(&t)?, t.len()),
            Type::Ptr(t) => {
                let to = inner(&t)?;
                match to.strip_suffix("()") {
                    Some(returns) => format!("{returns} (*)()"),
                    None if to.ends_with('*') => format!("{to}*"),
                    None => format!("{to} *"),
                }
            }
            // Parameters of function pointers are of no use to anybody here.
            Type::FuncProto(t) => format!("{}()", self.spell_within(t.return_type_id(), depth)?),
            other => other.name().to_owned(),
        })
    }

    /// Items of an enum; `None` for other types.
    pub(super) fn items_of(&self, of: &Type) -> Option<Vec<(String, i64)>> {
        match of {
            Type::Enum(e) => Some(
                e.members
                    .iter()
                    .map(|item| {
                        let value = if e.is_signed() {
                            i64::from(item.val() as i32)
                        } else {
                            i64::from(item.val())
                        };
                        (self.name(item), value)
                    })
                    .collect(),
            ),
            Type::Enum64(e) => Some(
                e.members
                    .iter()
                    .map(|item| (self.name(item), item.val() as i64))
                    .collect(),
            ),
            _ => None,
        }
    }

    /// All names and all items of all enums.
    pub(super) fn indexed(&self) -> Result<Index> {
        let mut index = Index::default();
        let (_, last) = self.btf.base().type_id_range();
        for id in 1..=last {
            let of = self.type_of(id)?;
            if let Some(name) = self.type_name(&of) {
                index.names.push((hash_of(&name), id));
            }
            for (name, value) in self.items_of(&of).unwrap_or_default() {
                let items = index.enum_items.entry(name).or_default();
                items.push(EnumItem { enum_id: id, value });
            }
        }
        index.names.sort_unstable();
        Ok(index)
    }

    /// Name of a type; `None` for those that have none.
    pub(super) fn type_name(&self, of: &Type) -> Option<String> {
        let name = self.name(of.as_btf_type()?);
        (!name.is_empty()).then_some(name)
    }
}

/// A prototype in one line, for errors.
pub(super) fn signature(function: &Function) -> String {
    let params: Vec<_> = function
        .params
        .iter()
        .map(|param| format!("{} {}", param.type_name, param.name))
        .collect();
    format!("{}({})", function.returns.type_name, params.join(", "))
}
