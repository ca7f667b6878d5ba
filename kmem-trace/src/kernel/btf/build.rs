//! Writes small BTF files for tests, after Documentation/bpf/btf.rst.

#[derive(Default)]
pub struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    last_id: u32,
}

pub const INT: u32 = 1;
pub const PTR: u32 = 2;
pub const ARRAY: u32 = 3;
pub const STRUCT: u32 = 4;
pub const UNION: u32 = 5;
pub const ENUM: u32 = 6;
pub const TYPEDEF: u32 = 8;
pub const CONST: u32 = 10;
pub const FUNC: u32 = 12;
pub const FUNC_PROTO: u32 = 13;
/// `kind_flag`: bit fields in structs, signed for enums.
pub const FLAG: u32 = 1 << 31;

impl Builder {
    pub fn new() -> Self {
        Builder {
            strings: vec![0],
            ..Builder::default()
        }
    }

    pub fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        at
    }

    /// Adds a type with raw trailing words; returns its id.
    pub fn raw(
        &mut self,
        name: &str,
        kind: u32,
        vlen: u32,
        size_or_type: u32,
        tail: &[u32],
    ) -> u32 {
        let name = self.string(name);
        let info = (kind & FLAG) | ((kind & !FLAG) << 24) | vlen;
        for word in [name, info, size_or_type].iter().chain(tail) {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
        self.last_id += 1;
        self.last_id
    }

    /// Number of types so far: the next one gets this plus one.
    pub fn count(&self) -> u32 {
        self.last_id
    }

    pub fn int(&mut self, name: &str, bytes: u32, signed: bool) -> u32 {
        self.raw(
            name,
            INT,
            0,
            bytes,
            &[(u32::from(signed) << 24) | (bytes * 8)],
        )
    }

    pub fn pointer(&mut self, to: u32) -> u32 {
        self.raw("", PTR, 0, to, &[])
    }

    /// Members: name, type, offset word (bits; with [`FLAG`] also the width in the top byte).
    pub fn strukt(
        &mut self,
        name: &str,
        kind: u32,
        size: u32,
        members: &[(&str, u32, u32)],
    ) -> u32 {
        let mut tail = Vec::new();
        for (name, type_id, offset) in members {
            tail.extend([self.string(name), *type_id, *offset]);
        }
        self.raw(name, kind, members.len() as u32, size, &tail)
    }

    pub fn enumeration(&mut self, name: &str, kind: u32, items: &[(&str, i32)]) -> u32 {
        let mut tail = Vec::new();
        for (name, value) in items {
            tail.extend([self.string(name), *value as u32]);
        }
        self.raw(name, kind, items.len() as u32, 4, &tail)
    }

    pub fn function(&mut self, name: &str, returns: u32, params: &[(&str, u32)]) -> u32 {
        let mut tail = Vec::new();
        for (name, type_id) in params {
            tail.extend([self.string(name), *type_id]);
        }
        let proto = self.raw("", FUNC_PROTO, params.len() as u32, returns, &tail);
        self.raw(name, FUNC, 0, proto, &[])
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0x9f, 0xeb, 1, 0];
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [24, 0, types, types, strings] {
            out.extend_from_slice(&u32::to_le_bytes(word));
        }
        out.extend_from_slice(&self.types);
        out.extend_from_slice(&self.strings);
        out
    }
}
