//! tmp
use std::path::{Path, PathBuf};
#[derive(Clone, Debug, Default)]
pub struct Field {
    pub name: String,
    pub offset: u32,
    pub size: u32,
}
#[derive(Clone, Debug, Default)]
pub struct Format {
    pub fields: Vec<Field>,
}
pub fn find_or_mount() -> std::io::Result<PathBuf> {
    for p in ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"] {
        if Path::new(p).join("events").exists() {
            return Ok(p.into());
        }
    }
    Err(std::io::Error::other("tracefs is not mounted"))
}
pub fn event_format(root: &Path, cat: &str, name: &str) -> std::io::Result<Format> {
    let text = std::fs::read_to_string(root.join("events").join(cat).join(name).join("format"))?;
    let mut f = Format::default();
    for l in text.lines() {
        let l = l.trim();
        let Some(r) = l.strip_prefix("field:") else {
            continue;
        };
        let mut p = r.split(';');
        let decl = p.next().unwrap_or("");
        let name = decl
            .rsplit(' ')
            .next()
            .unwrap_or("")
            .split('[')
            .next()
            .unwrap_or("")
            .to_owned();
        let num = |x: Option<&str>| {
            x.and_then(|x| x.trim().split(':').nth(1))
                .and_then(|x| x.parse().ok())
                .unwrap_or(0)
        };
        let offset = num(p.next());
        let size = num(p.next());
        f.fields.push(Field { name, offset, size });
    }
    Ok(f)
}
