//! tmp
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    None,
    Integrity,
    Confidentiality,
    Unknown,
}
impl std::fmt::Display for Lockdown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Integrity => "integrity",
            Self::Confidentiality => "confidentiality",
            Self::Unknown => "unknown",
        })
    }
}
pub fn lockdown() -> Lockdown {
    match std::fs::read_to_string("/sys/kernel/security/lockdown") {
        Ok(t) if t.contains("[none]") => Lockdown::None,
        Ok(t) if t.contains("[integrity]") => Lockdown::Integrity,
        Ok(t) if t.contains("[conf") => Lockdown::Confidentiality,
        _ => Lockdown::Unknown,
    }
}
