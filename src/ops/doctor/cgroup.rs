//! Where containers are counted and limited.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::Finding;
use crate::sys::mount_table;

/// What engines set limits of as a matter of course.
const WANTED: [&str; 3] = ["cpu", "memory", "pids"];

/// What is mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Hierarchies {
    /// Version 1 controllers.
    v1: BTreeSet<String>,
    /// Where version 2 is mounted.
    v2: Option<PathBuf>,
    /// Its controllers.
    v2_controllers: BTreeSet<String>,
}

pub(super) fn examine() -> Vec<Finding> {
    let table = mount_table::read().unwrap_or_default();
    let mut found = parse(&table);
    if let Some(v2) = &found.v2 {
        let text = fs::read_to_string(v2.join("cgroup.controllers")).unwrap_or_default();
        found.v2_controllers = text.split_whitespace().map(str::to_owned).collect();
    }
    vec![judge(&found)]
}

fn parse(table: &str) -> Hierarchies {
    let mut found = Hierarchies::default();
    for mount in mount_table::parse(table) {
        match mount.kind {
            "cgroup2" => {
                found.v2 = found.v2.take().or(Some(mount.point));
            }
            // Its other options: rw, xattr, and the name of a hierarchy without controllers.
            "cgroup" => found.v1.extend(
                mount
                    .options
                    .split(',')
                    .filter(|word| !["rw", "ro", "xattr"].contains(word) && !word.contains('='))
                    .map(str::to_owned),
            ),
            _ => {}
        }
    }
    found
}

fn judge(found: &Hierarchies) -> Finding {
    let subject = "cgroups";
    let version = match (found.v1.is_empty(), &found.v2) {
        (true, None) => {
            let mend = "mount -t cgroup2 cgroup2 /sys/fs/cgroup";
            return Finding::fail(subject, "none are mounted: no container can be made", mend);
        }
        (true, Some(_)) => "version 2",
        (false, None) => "version 1",
        (false, Some(_)) => "version 1, with version 2 beside it",
    };
    let all: BTreeSet<&str> = found.v1.union(&found.v2_controllers).map(String::as_str).collect();
    let missing: Vec<&str> = WANTED.into_iter().filter(|name| !all.contains(name)).collect();
    let list = all.into_iter().collect::<Vec<_>>().join(" ");
    if missing.is_empty() {
        return Finding::ok(subject, format!("{version}: {list}"));
    }
    let text = format!("{version} without {}: limits of that are refused (there are: {list})", missing.join(", "));
    let mend = match &found.v2 {
        Some(_) if found.v1.is_empty() => "boot without cgroup_disable= on the kernel's command line".to_owned(),
        _ => format!("mount -t cgroup -o {0} cgroup /sys/fs/cgroup/{0}", missing[0]),
    };
    Finding::warn(subject, text, mend)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::ops::doctor::Status;

    #[test]
    fn hierarchies_are_told_from_the_mount_table() {
        let table = "30 25 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
                     31 25 0:27 / /sys/fs/cgroup/systemd rw - cgroup none rw,name=systemd\n\
                     32 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                     33 25 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                     34 25 0:30 / /tmp rw - tmpfs tmpfs rw\n";
        let found = parse(table);
        assert_eq!(found.v1, ["cpu", "cpuacct", "memory"].map(str::to_owned).into());
        assert_eq!(found.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        let finding = judge(&found);
        assert!(finding.status == Status::Warn && finding.text.contains("without pids"), "{finding:?}");
    }

    #[test]
    fn no_cgroups_at_all_are_a_failure_and_version_2_alone_is_fine() {
        assert_eq!(judge(&Hierarchies::default()).status, Status::Fail);
        let controllers = ["cpu", "io", "memory", "pids"].map(str::to_owned).into();
        let v2 =
            Hierarchies { v2: Some("/sys/fs/cgroup".into()), v2_controllers: controllers, ..Hierarchies::default() };
        assert_eq!(judge(&v2).text, "version 2: cpu io memory pids");
        let poor = Hierarchies { v2_controllers: ["cpu".to_owned()].into(), ..v2 };
        assert!(judge(&poor).text.contains("without memory, pids"));
    }
}
