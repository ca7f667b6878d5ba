//! tmp
use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hierarchy {
    V1,
    V2,
}
#[derive(Clone, Debug)]
pub struct MemoryMount {
    pub hierarchy: Hierarchy,
    pub mount_point: PathBuf,
}
impl MemoryMount {
    pub fn find() -> anyhow::Result<Self> {
        if Path::new("/sys/fs/cgroup/memory/memory.usage_in_bytes").exists() {
            return Ok(Self {
                hierarchy: Hierarchy::V1,
                mount_point: "/sys/fs/cgroup/memory".into(),
            });
        }
        Ok(Self {
            hierarchy: Hierarchy::V2,
            mount_point: "/sys/fs/cgroup".into(),
        })
    }
}
#[derive(Clone, Debug)]
pub struct CgroupDir {
    pub path_in_hierarchy: PathBuf,
    pub dir: PathBuf,
    pub id: u64,
    pub level: usize,
}
fn at(root: &Path, p: &Path) -> std::io::Result<CgroupDir> {
    let dir = root.join(p.strip_prefix("/").unwrap_or(p));
    let id = fs::metadata(&dir)?.ino();
    Ok(CgroupDir {
        path_in_hierarchy: Path::new("/").join(p),
        level: p
            .components()
            .filter(|c| matches!(c, std::path::Component::Normal(_)))
            .count(),
        dir,
        id,
    })
}
pub fn resolve(m: &MemoryMount, a: &str) -> anyhow::Result<CgroupDir> {
    let a = a
        .strip_prefix(m.mount_point.to_str().unwrap_or(""))
        .unwrap_or(a);
    Ok(at(&m.mount_point, Path::new(a.trim_matches('/')))?)
}
pub fn of_pid(m: &MemoryMount, pid: u32) -> anyhow::Result<CgroupDir> {
    let t = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    for l in t.lines() {
        let mut p = l.splitn(3, ':');
        let (_, c, x) = (p.next(), p.next().unwrap_or(""), p.next().unwrap_or(""));
        if c == "memory" || (c.is_empty() && m.hierarchy == Hierarchy::V2) {
            return resolve(m, x);
        }
    }
    anyhow::bail!("none")
}
pub fn hierarchy_root(c: &CgroupDir) -> CgroupDir {
    let mut d = c.dir.clone();
    for _ in 0..c.level {
        d.pop();
    }
    let id = fs::metadata(&d).map(|m| m.ino()).unwrap_or(0);
    CgroupDir {
        path_in_hierarchy: "/".into(),
        dir: d,
        id,
        level: 0,
    }
}
pub fn walk(c: &CgroupDir) -> Vec<CgroupDir> {
    let mut out = vec![];
    let mut todo = vec![c.clone()];
    while let Some(d) = todo.pop() {
        let Ok(m) = fs::metadata(&d.dir) else {
            continue;
        };
        if m.ino() != d.id {
            continue;
        }
        if let Ok(rd) = fs::read_dir(&d.dir) {
            for e in rd.flatten() {
                if e.file_type().is_ok_and(|t| t.is_dir()) {
                    todo.push(CgroupDir {
                        path_in_hierarchy: d.path_in_hierarchy.join(e.file_name()),
                        dir: e.path(),
                        id: e.metadata().map(|m| m.ino()).unwrap_or(0),
                        level: d.level + 1,
                    });
                }
            }
        }
        out.push(d);
    }
    out
}
#[derive(Clone, Copy, Debug, Default)]
pub struct CounterValues {
    pub memory: u64,
    pub kmem: Option<u64>,
    pub memsw: Option<u64>,
    pub swap: Option<u64>,
    pub tcpmem: Option<u64>,
}
pub fn counters(d: &Path, h: Hierarchy) -> std::io::Result<CounterValues> {
    let r = |f: &str| {
        fs::read_to_string(d.join(f))
            .ok()
            .and_then(|t| t.trim().parse().ok())
    };
    let (m, k, s, w, t) = match h {
        Hierarchy::V1 => (
            "memory.usage_in_bytes",
            r("memory.kmem.usage_in_bytes"),
            None,
            r("memory.memsw.usage_in_bytes"),
            r("memory.kmem.tcp.usage_in_bytes"),
        ),
        Hierarchy::V2 => ("memory.current", None, r("memory.swap.current"), None, None),
    };
    Ok(CounterValues {
        memory: r(m).ok_or(std::io::ErrorKind::NotFound)?,
        kmem: k,
        memsw: w,
        swap: s,
        tcpmem: t,
    })
}
pub fn stat(d: &Path) -> std::io::Result<HashMap<String, u64>> {
    Ok(fs::read_to_string(d.join("memory.stat"))?
        .lines()
        .filter_map(|l| l.split_once(' '))
        .filter_map(|(k, v)| Some((k.to_owned(), v.parse().ok()?)))
        .collect())
}

pub fn hierarchy_number(h: Hierarchy) -> Option<u32> {
    match h {
        Hierarchy::V2 => Some(0),
        Hierarchy::V1 => fs::read_to_string("/proc/self/cgroup")
            .ok()?
            .lines()
            .find_map(|l| {
                let (n, r) = l.split_once(':')?;
                r.split(':')
                    .next()?
                    .split(',')
                    .any(|c| c == "memory")
                    .then(|| n.parse().ok())?
            }),
    }
}
