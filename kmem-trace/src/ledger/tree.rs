//! The tree of memory cgroups as far as the trace knows it: who pays into whom, and under which
//! names, the dead included.

use std::{
    collections::{HashMap, VecDeque},
    ffi::OsString,
    path::{Path, PathBuf},
};

/// How far a cgroup's life has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Life {
    /// Its directory is there.
    #[default]
    Living,
    /// Its directory is gone; charges may live on.
    Removed,
    /// The kernel has let go of it: nothing can be charged to it any more.
    Released,
}

/// One cgroup.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// The cgroup that is charged with it.
    pub parent: Option<u64>,
    /// Path below the hierarchy's root, the last one known; `None` where it was never seen.
    pub path: Option<PathBuf>,
    pub life: Life,
}

/// All cgroups that were seen, by id.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    nodes: HashMap<u64, Node>,
    by_path: HashMap<PathBuf, u64>,
    /// Of those that were forgotten, who inherits; the last [`MAX_HEIRS`] of them.
    heirs: HashMap<u64, u64>,
    forgotten: VecDeque<u64>,
    /// How many below a cgroup were forgotten.
    gone_below: HashMap<u64, usize>,
}

/// Forgotten cgroups whose heir is known, at most: objects that nobody pays for may name one long
/// after its end.
const MAX_HEIRS: usize = 65_536;

/// A chain of parents longer than any hierarchy means that ids were reused; stop there.
const MAX_DEPTH: usize = 4096;

impl Tree {
    /// A living cgroup with its name.
    pub fn see(&mut self, id: u64, path: &Path) {
        let parent = path
            .parent()
            .and_then(|parent| self.by_path.get(parent))
            .copied();
        let node = self.nodes.entry(id).or_default();
        node.parent = node.parent.or(parent);
        if node.path.as_deref() != Some(path) {
            node.path = Some(path.to_owned());
        }
        node.life = Life::Living;
        self.by_path.insert(path.to_owned(), id);
    }

    /// A record says that it was made: too late, perhaps, where its release was told of otherwise.
    pub fn made(&mut self, id: u64, path: &Path) {
        if !self.is_forgotten(id) {
            self.see(id, path);
        }
    }

    /// What the kernel's page counters say: `parent` is charged with `id`.
    pub fn charged_with(&mut self, id: u64, parent: u64) {
        let node = self.nodes.entry(id).or_default();
        if parent != 0 && parent != id {
            node.parent = Some(parent);
        }
    }

    /// The directory went away.
    pub fn removed(&mut self, id: u64, path: Option<&Path>) {
        // Records may overtake each other.
        if self.heirs.contains_key(&id) {
            return;
        }
        let node = self.nodes.entry(id).or_default();
        node.life = node.life.max_with(Life::Removed);
        if node.path.is_none() {
            node.path = path.map(Path::to_owned);
        }
        let (known, parent) = (node.path.clone(), node.parent);
        if let Some(known) = known {
            if parent.is_none() {
                let above = known
                    .parent()
                    .and_then(|above| self.by_path.get(above))
                    .copied();
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.parent = above;
                }
            }
            if self.by_path.get(&known) == Some(&id) {
                self.by_path.remove(&known);
            }
        }
    }

    /// The kernel freed it.
    pub fn released(&mut self, id: u64, path: Option<&Path>) {
        self.removed(id, path);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.life = Life::Released;
        }
    }

    /// The directory, and all below it, have another name.
    pub fn renamed(&mut self, id: u64, path: &Path) {
        let Some(old) = self.nodes.get(&id).and_then(|node| node.path.clone()) else {
            self.see(id, path);
            return;
        };
        for (id, node) in &mut self.nodes {
            let Some(below) = node
                .path
                .as_ref()
                .and_then(|own| own.strip_prefix(&old).ok())
            else {
                continue;
            };
            let renamed = if below.as_os_str().is_empty() {
                path.to_owned()
            } else {
                path.join(below)
            };
            if let Some(former) = node.path.replace(renamed.clone()) {
                self.by_path.remove(&former);
            }
            if node.life == Life::Living {
                self.by_path.insert(renamed, *id);
            }
        }
    }

    pub fn get(&self, id: u64) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub fn parent(&self, id: u64) -> Option<u64> {
        match self.nodes.get(&id) {
            Some(node) => node.parent,
            None => self.heirs.get(&id).copied(),
        }
    }

    /// The nearest cgroup above that is not forgotten.
    pub fn heir(&self, id: u64) -> Option<u64> {
        self.chain(id)
            .skip(1)
            .find(|above| self.nodes.contains_key(above))
    }

    /// Keeps of a released cgroup no more than who inherits from it: there may be any number of them.
    pub fn forget(&mut self, id: u64) {
        let heir = self.heir(id);
        let Some(node) = self.nodes.remove(&id) else {
            return;
        };
        if let Some(path) = node.path
            && self.by_path.get(&path) == Some(&id)
        {
            self.by_path.remove(&path);
        }
        let below = self.gone_below.remove(&id).unwrap_or(0);
        let Some(heir) = heir else {
            return;
        };
        *self.gone_below.entry(heir).or_default() += below + 1;
        self.heirs.insert(id, heir);
        self.forgotten.push_back(id);
        if self.forgotten.len() > MAX_HEIRS
            && let Some(oldest) = self.forgotten.pop_front()
        {
            self.heirs.remove(&oldest);
        }
    }

    pub fn is_forgotten(&self, id: u64) -> bool {
        !self.nodes.contains_key(&id) && self.heirs.contains_key(&id)
    }

    /// How many at or below `top` were forgotten.
    pub fn forgotten_below(&self, top: u64) -> usize {
        self.gone_below
            .iter()
            .filter(|(id, _)| self.is_within(**id, top))
            .map(|(_, count)| count)
            .sum()
    }

    /// Cgroups that are kept.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// `id` and its ancestors, lowest first.
    pub fn chain(&self, id: u64) -> impl Iterator<Item = u64> + '_ {
        std::iter::successors(Some(id), |id| self.parent(*id)).take(MAX_DEPTH)
    }

    /// Whether `id` is `top` or below it.
    pub fn is_within(&self, id: u64, top: u64) -> bool {
        self.chain(id).any(|above| above == top)
    }

    /// All cgroups at or below `top`, the dead included.
    pub fn subtree(&self, top: u64) -> impl Iterator<Item = (u64, &Node)> + '_ {
        self.nodes
            .iter()
            .filter(move |(id, _)| self.is_within(**id, top))
            .map(|(id, node)| (*id, node))
    }

    /// How a cgroup is called on screen: its path, or its id where no path was ever seen.
    pub fn name(&self, id: u64) -> OsString {
        match self.nodes.get(&id) {
            Some(Node {
                path: Some(path), ..
            }) => path.as_os_str().to_owned(),
            _ => OsString::from(format!("#{id}")),
        }
    }
}

impl Life {
    /// Life only ever goes one way.
    fn max_with(self, other: Self) -> Self {
        if self == Self::Released { self } else { other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.see(1, Path::new("/a"));
        tree.see(2, Path::new("/a/b"));
        tree.see(3, Path::new("/a/b/c"));
        tree
    }

    #[test]
    fn parents_come_from_paths_where_the_kernel_has_not_said() {
        assert_eq!(tree().chain(3).collect::<Vec<_>>(), [3, 2, 1]);
    }

    #[test]
    fn what_the_page_counters_say_wins_over_paths() {
        let mut tree = tree();
        tree.charged_with(3, 1);
        tree.see(3, Path::new("/a/b/c"));
        assert_eq!(tree.chain(3).collect::<Vec<_>>(), [3, 1]);
    }

    #[test]
    fn a_dead_cgroup_keeps_its_name_and_its_place() {
        let mut tree = tree();
        tree.released(3, None);
        assert_eq!(tree.name(3), "/a/b/c");
        assert!(tree.is_within(3, 1));
    }

    #[test]
    fn a_name_used_again_belongs_to_the_new_cgroup() {
        let mut tree = tree();
        tree.removed(2, None);
        tree.see(9, Path::new("/a/b"));
        tree.see(10, Path::new("/a/b/d"));
        assert_eq!(tree.parent(10), Some(9));
        assert_eq!(tree.get(2).map(|node| node.life), Some(Life::Removed));
    }

    #[test]
    fn a_rename_moves_everything_below() {
        let mut tree = tree();
        tree.renamed(2, Path::new("/a/z"));
        assert_eq!(tree.name(3), "/a/z/c");
        assert_eq!(tree.chain(3).collect::<Vec<_>>(), [3, 2, 1]);
    }

    #[test]
    fn what_is_forgotten_is_inherited_by_what_lives_above() {
        let mut tree = tree();
        tree.released(3, None);
        tree.forget(3);
        assert_eq!(tree.heir(3), Some(2));
        assert!(tree.is_within(3, 1) && tree.is_forgotten(3));
        tree.forget(2);
        assert_eq!(tree.heir(3), Some(1));
        assert_eq!((tree.len(), tree.forgotten_below(1)), (1, 2));
        // A record that comes too late does not bring it back.
        tree.made(3, Path::new("/a/b/c"));
        tree.removed(3, None);
        assert_eq!(tree.len(), 1);
    }

    #[test]
    fn a_hundred_thousand_cgroups_that_came_and_went_take_little() {
        let mut tree = tree();
        for id in 100..100_100 {
            tree.see(id, &Path::new("/a").join(id.to_string()));
            tree.released(id, None);
            tree.forget(id);
        }
        assert_eq!((tree.len(), tree.by_path.len()), (3, 3));
        assert_eq!(
            (tree.heirs.len(), tree.forgotten.len()),
            (MAX_HEIRS, MAX_HEIRS)
        );
        assert_eq!(tree.forgotten_below(1), 100_000);
    }

    #[test]
    fn a_loop_of_parents_ends() {
        let mut tree = Tree::default();
        tree.charged_with(1, 2);
        tree.charged_with(2, 1);
        assert!(!tree.is_within(1, 3));
    }
}
