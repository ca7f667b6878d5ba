use proptest::prelude::*;

use super::{
    super::{mountinfo, tree::Tree},
    *,
};

const DOCKER: &[&str] = &[
    "docker/3f2a9c11aa",
    "docker/3f2a77bb22",
    "docker/9d00ffeedd/9d00ffeedd-init",
    "test-docker-memory/group-01",
];

fn message(result: Result<CgroupDir, ResolveError>) -> String {
    match result {
        Ok(cgroup) => format!("found {}", cgroup.path_in_hierarchy.display()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_cgroup_is_found_by_path_by_directory_and_by_part_of_its_name() {
    let tree = Tree::v1(DOCKER);
    let full = tree.path("docker/3f2a9c11aa");
    for arg in [
        "docker/3f2a9c11aa",
        "/docker/3f2a9c11aa",
        "/docker/3f2a9c11aa/",
        "3f2a9c",
        full.to_str().expect("text"),
    ] {
        assert_eq!(
            message(resolve(&tree.mount, &[], arg)),
            "found /docker/3f2a9c11aa",
            "{arg}"
        );
    }
}

#[test]
fn the_outermost_of_nested_names_is_meant() {
    let tree = Tree::v1(DOCKER);
    assert_eq!(
        message(resolve(&tree.mount, &[], "9d00ff")),
        "found /docker/9d00ffeedd"
    );
}

#[test]
fn a_part_that_several_have_lists_them() {
    let tree = Tree::v1(DOCKER);
    assert_eq!(
        message(resolve(&tree.mount, &[], "3f2a")),
        "3f2a could be /docker/3f2a77bb22, /docker/3f2a9c11aa: give more of the name or its path"
    );
    let many: Vec<String> = (0..8).map(|n| format!("twin-{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let text = message(resolve(&Tree::v1(&many).mount, &[], "twin"));
    assert!(text.contains("/twin-4 and 3 more"), "{text}");
}

#[test]
fn a_name_that_nobody_has_suggests_the_closest() {
    let tree = Tree::v1(DOCKER);
    let text = message(resolve(&tree.mount, &[], "test-docker-memry"));
    assert!(
        text.ends_with("; did you mean /test-docker-memory?"),
        "{text}"
    );
    let text = message(resolve(&tree.mount, &[], "nothing-like-it"));
    assert!(
        text.starts_with("no cgroup nothing-like-it under ") && !text.contains("mean"),
        "{text}"
    );
    let short = resolve(&tree.mount, &[], "3f2");
    assert!(matches!(short, Err(ResolveError::NotFound { .. })));
}

#[test]
fn the_root_is_refused_but_not_the_top_of_a_bound_part() {
    let tree = Tree::v1(DOCKER);
    for arg in ["/", "", tree.mount.mount_point.to_str().expect("text")] {
        assert!(
            matches!(
                resolve(&tree.mount, &[], arg),
                Err(ResolveError::Root { .. })
            ),
            "{arg}"
        );
    }
    let part = MemoryMount {
        mount_point: tree.path("docker/3f2a9c11aa"),
        root: "/docker/3f2a9c11aa".into(),
        ..tree.mount.clone()
    };
    assert_eq!(
        message(resolve(&part, &[], "/")),
        "found /docker/3f2a9c11aa"
    );
    assert_eq!(
        message(resolve(&part, &[], "/docker/3f2a9c11aa")),
        "found /docker/3f2a9c11aa"
    );
}

#[test]
fn climbing_files_and_foreign_directories_are_refused() {
    let tree = Tree::v1(DOCKER);
    tree.write("docker/tasks", b"1\n");
    for arg in ["../x", "docker/../docker", "/sys/fs/cgroup/../x"] {
        assert!(matches!(
            resolve(&tree.mount, &[], arg),
            Err(ResolveError::Escapes { .. })
        ));
    }
    assert!(matches!(
        resolve(&tree.mount, &[], "docker/tasks"),
        Err(ResolveError::NotADirectory { .. })
    ));
    assert!(matches!(
        resolve(&tree.mount, &[], "/proc"),
        Err(ResolveError::NotACgroup { .. })
    ));
    assert!(matches!(
        resolve(&tree.mount, &[], "/proc/version"),
        Err(ResolveError::NotADirectory { .. })
    ));
}

#[test]
fn a_directory_of_another_controller_names_the_one_that_is_meant() {
    let (memory, cpu) = (
        Tree::v1(DOCKER),
        Tree::v1(&["docker/3f2a9c11aa", "only-cpu"]),
    );
    let line = |at: &Path, what: &str| {
        format!("1 0 0:1 / {} rw - cgroup cgroup rw,{what}\n", at.display())
    };
    let text =
        line(&memory.mount.mount_point, "memory") + &line(&cpu.mount.mount_point, "cpu,cpuacct");
    let mounts = mountinfo::parse(text.as_bytes()).expect("valid");
    let asked = |path: &str| {
        let arg = cpu.path(path);
        message(resolve(&memory.mount, &mounts, arg.to_str().expect("text")))
    };
    let meant = memory.path("docker/3f2a9c11aa");
    let text = asked("docker/3f2a9c11aa");
    assert!(
        text.contains("hierarchy of cpu,cpuacct, not of memory"),
        "{text}"
    );
    assert!(text.ends_with(&format!("is {}", meant.display())), "{text}");
    assert!(asked("only-cpu").ends_with("which does not exist"));
    let own = meant.to_str().expect("text");
    assert!(resolve(&memory.mount, &mounts, own).is_ok());
}

#[test]
fn names_that_no_directory_can_have_are_not_found() {
    let tree = Tree::v1(DOCKER);
    let long = "x".repeat(5000);
    for arg in [long.as_str(), "nul\0inside", "/nul\0inside"] {
        assert!(matches!(
            resolve(&tree.mount, &[], arg),
            Err(ResolveError::NotFound { .. })
        ));
    }
}

#[test]
fn edit_distance_counts_single_changes() {
    assert_eq!(distance("memory", "memory"), 0);
    assert_eq!(distance("memory", "memry"), 1);
    assert_eq!(distance("", "abc"), 3);
    assert_eq!(distance("kitten", "sitting"), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_argument_makes_it_panic_or_leave_the_hierarchy(arg in ".{0,20}") {
        let tree = Tree::v1(&["docker/abcdef"]);
        if let Ok(cgroup) = resolve(&tree.mount, &[], &arg) {
            prop_assert!(cgroup.dir.starts_with(&tree.mount.mount_point));
        }
    }
}
