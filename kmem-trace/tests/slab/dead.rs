//! What a removed cgroup still holds is told under the name that it had, until it is freed.

use std::{fs, process::Command, time::Duration};

use crate::{
    attribution::tracer,
    causes::latest,
    support::{
        cgroup::Cgroup,
        lines::{self, number},
        soon,
    },
};

const FILES: i64 = 2000;

#[test]
fn dentries_of_a_removed_cgroup_are_held_under_its_name_until_they_are_freed() {
    let own = std::process::id();
    let parent = Cgroup::top(&format!("kmem-trace-test-dead-{own}"));
    let Some(tracer) = tracer(&format!("-c {} -i 200ms", parent.name)) else {
        return;
    };
    let child = parent.child("gone");
    let files = std::env::temp_dir().join(format!("kmem-trace-test-dead-{own}"));
    let script = format!(
        "echo 0 > {}/cgroup.procs && mkdir {dir} && i=0 && while [ $i -lt {FILES} ]; do \
         : > {dir}/a-name-longer-than-the-dentry-itself-holds-$i; i=$((i+1)); done",
        child.dir.display(),
        dir = files.display(),
    );
    let status = Command::new("sh").args(["-c", &script]).status();
    assert!(status.expect("there is a shell").success());
    assert!(child.remove(), "{} is busy", child.name);

    // Dentries that the last whole report says the child holds, and whether it tells the dead apart.
    let held = || {
        lines::of_type(&latest(&tracer), "dead")
            .filter(|line| line["cache"] == "dentry" && line["cgroup"] == child.name.as_str())
            .map(|line| number(line, "objects"))
            .sum::<i64>()
    };
    let named = soon(Duration::from_secs(60), || held() >= FILES * 99 / 100);
    let most = held();
    fs::remove_dir_all(&files).expect("the files can go");
    assert!(named, "{most} dentries held by {}", child.name);
    assert!(most <= FILES + 100, "{most}");
    assert!(
        soon(Duration::from_secs(60), || held() < FILES / 20),
        "{} dentries still held",
        held()
    );
    tracer.end().assert_fine();
}
