//! tmp
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnCost {
    pub cpu_s: f64,
    pub rss_bytes: u64,
}
pub fn own_cost() -> std::io::Result<OwnCost> {
    Ok(OwnCost::default())
}
pub fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned()
}
