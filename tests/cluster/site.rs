//! The hosts themselves: that they are apart, and that cuts cut.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::cgroup_of;
use crate::harness::eventually;
use crate::harness::site::{Cut, Site};

fn reaches(site: &Site, from: usize, to: usize) -> bool {
    let address = site.host(to).address.clone();
    site.shell(from, &format!("busybox ping -c 1 -W 1 {address} 2>&1 || true")).contains(" 1 packets received")
}

#[test]
fn hosts_reach_each_other_unless_they_are_cut_and_nobody_else_ever() {
    let site = Site::new("wires", 3);
    let pairs = || (0..3).flat_map(|from| (0..3).filter(move |to| *to != from).map(move |to| (from, to)));
    let all = |site: &Site| pairs().all(|(from, to)| reaches(site, from, to));
    eventually("all reach all", || all(&site));
    for way in [Cut::Down, Cut::Silence] {
        site.cut(0, way);
        let open: BTreeSet<_> = pairs().filter(|(from, to)| reaches(&site, *from, *to)).collect();
        assert_eq!(open, BTreeSet::from([(1, 2), (2, 1)]), "{way:?}");
        site.heal();
        eventually("all reach all again", || all(&site));
        site.cut_between(0, 1, way);
        let open: BTreeSet<_> = pairs().filter(|(from, to)| reaches(&site, *from, *to)).collect();
        assert_eq!(open, BTreeSet::from([(0, 2), (1, 2), (2, 0), (2, 1)]), "{way:?}");
        site.heal();
        eventually("all reach all again", || all(&site));
    }
    let interfaces = site.shell(1, "ip -o link | cut -d: -f2 | cut -d@ -f1 | tr -d ' \n'");
    assert_eq!(interfaces, "loeth0", "a host sees the machine's network");
}

#[test]
fn containers_of_the_same_name_run_in_each_host() {
    let site = Site::new("same", 2);
    let bundle = site.world().bundle(|spec| spec["process"]["args"] = serde_json::json!(["sleep", "1000"]));
    let groups: BTreeSet<_> = (0..2)
        .map(|index| {
            site.regen(index, &["run", "--detach", "--bundle", bundle.text(), "same"]).success();
            let pid = site.json(index, &["state", "same"])["pid"].as_i64().unwrap();
            assert_eq!(site.shell(index, "hostname").trim_end(), site.host(index).name);
            cgroup_of(i32::try_from(pid).unwrap())
        })
        .collect();
    assert_eq!(groups.len(), 2, "{groups:?}");
    for (index, group) in groups.iter().enumerate() {
        assert!(group.starts_with("/sys/fs/cgroup") && group.to_string_lossy().contains(&site.world().id("n")));
        site.regen(index, &["delete", "--force", "same"]).success();
    }
}

#[test]
fn a_cluster_of_etcd_goes_on_with_two_of_three_hosts() {
    let site = Site::new("quorum", 3);
    site.begin_etcd();
    site.ctl(0, &["put", "a", "1"]).success();
    site.cut(0, Cut::Silence);
    eventually("the others go on", || site.ctl(1, &["put", "a", "2"]).code == 0);
    assert_ne!(site.ctl(0, &["get", "a"]).code, 0, "one alone answers");
    site.heal();
    site.await_member(0);
    assert_eq!(site.ctl(0, &["get", "a", "--print-value-only"]).success().stdout(), "2\n");
    site.kill_member(1);
    eventually("the others go on", || site.ctl(2, &["put", "a", "3"]).code == 0);
    site.restart_member(1);
    site.await_member(1);
    site.pause_member(2);
    std::thread::sleep(Duration::from_millis(100));
    site.resume_member(2);
    assert_eq!(site.ctl(1, &["get", "a", "--print-value-only"]).success().stdout(), "3\n");
}
