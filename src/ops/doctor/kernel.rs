//! What the kernel can do.

use std::fs::{self, File};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::Finding;
use super::program;
use crate::error::Error;
use crate::overlay;
use crate::sys::user::{Subordinate, subordinates};

/// mount_setattr(2), without which no mount gets its flags.
const OLDEST: Version = Version(5, 12);
/// Overlay's `lowerdir+`.
const LONG_CHAINS: Version = Version(6, 7);
/// What a container with 65536 ids of its own needs.
const SUBORDINATE_IDS: u64 = 65_536;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

pub(super) fn examine() -> Vec<Finding> {
    let text = |path: &str| fs::read_to_string(path).ok();
    vec![
        judge_version(text("/proc/sys/kernel/osrelease").unwrap_or_default().trim()),
        judge_overlay(overlay::missing_features()),
        judge_seccomp(text("/proc/sys/kernel/seccomp/actions_avail").as_deref()),
        judge_pidfd_getfd(look_pidfd_getfd()),
        judge_user_namespaces(&look_user_namespaces()),
    ]
}

fn parse_version(release: &str) -> Option<Version> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    Some(Version(numbers.next()??, numbers.next()??))
}

fn judge_version(release: &str) -> Finding {
    let subject = "kernel";
    let Some(version) = parse_version(release) else {
        return Finding::warn(subject, format!("its release '{release}' has an unknown form"), "uname -r");
    };
    let linux = format!("Linux {release}");
    if version < OLDEST {
        let text = format!("{linux}: the oldest kernel that regen runs on is 5.12");
        Finding::fail(subject, text, "boot Linux 6.7 or newer")
    } else if version < LONG_CHAINS {
        let text = format!("{linux}: chains end near 60 layers, so rings deeper than that do too");
        Finding::warn(subject, text, "boot Linux 6.7 or newer")
    } else {
        Finding::ok(subject, format!("{linux} has everything that regen uses"))
    }
}

fn judge_overlay(missing: Result<Vec<&'static str>, Error>) -> Finding {
    let subject = "overlay";
    match missing {
        Ok(missing) if missing.is_empty() => {
            Finding::ok(subject, "lowerdir+, userxattr, redirect_dir, metacopy, index and xino are there")
        }
        // Chains are then joined, which the finding about the version says.
        Ok(missing) if missing == ["lowerdir+"] => {
            Finding::ok(subject, "userxattr, redirect_dir, metacopy, index and xino are there, lowerdir+ is not")
        }
        Ok(missing) if missing == ["userxattr"] => {
            Finding::warn(subject, "userxattr is missing: no rings in user namespaces", "boot Linux 5.12 or newer")
        }
        Ok(missing) => {
            let text = format!("the kernel lacks {}: no ring can be used", missing.join(", "));
            Finding::fail(subject, text, "boot Linux 5.12 or newer")
        }
        Err(error) if error.errno() == Some(nix::errno::Errno::EPERM as i32) => Finding::unseen(subject, &error),
        Err(error) => Finding::fail(subject, error.without_next_step(), "modprobe overlay"),
    }
}

fn judge_seccomp(actions: Option<&str>) -> Finding {
    let subject = "seccomp";
    let Some(actions) = actions else {
        let text = "the kernel has no filters: containers with a profile, as engines give them, are refused";
        return Finding::fail(subject, text, "boot a kernel with CONFIG_SECCOMP_FILTER");
    };
    if actions.split_whitespace().any(|action| action == "user_notif") {
        Finding::ok(subject, "filters and notification are there")
    } else {
        let text = "filters are there, notification is not: profiles with a listener are refused";
        Finding::warn(subject, text, "boot Linux 5.0 or newer")
    }
}

/// A descriptor of our own is asked for: nothing is opened that is not open.
fn look_pidfd_getfd() -> Result<(), Errno> {
    let me: Pid = getpid();
    let process = pidfd_open(me, PidfdFlags::empty())?;
    match pidfd_getfd(process, 0, PidfdGetfdFlags::empty()) {
        // That it asks which descriptor is meant says that the call is there.
        Ok(_) | Err(Errno::BADF) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn judge_pidfd_getfd(looked: Result<(), Errno>) -> Finding {
    let subject = "pidfd_getfd";
    match looked {
        Ok(()) => Finding::ok(subject, "sockets can be taken over from running processes"),
        Err(Errno::NOSYS) => {
            Finding::warn(subject, "the kernel lacks it: no socket can be taken over", "boot Linux 5.6 or newer")
        }
        Err(errno) => {
            let text = format!("it is refused ({}): no socket can be taken over", std::io::Error::from(errno));
            Finding::warn(subject, text, "run regen outside of the sandbox or container that forbids it")
        }
    }
}

/// What the kernel and the administrator say about user namespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct UserNamespaces {
    /// `user.max_user_namespaces`; `None` where the kernel has none.
    max: Option<u64>,
    /// `kernel.unprivileged_userns_clone` is 0 (Debian's kernels have it).
    forbidden: bool,
    /// `kernel.apparmor_restrict_unprivileged_userns` is 1 (Ubuntu's have it).
    restricted: bool,
    /// The caller, if it is an ordinary user.
    user: Option<User>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    name: String,
    /// Ids that `/etc/subuid` and `/etc/subgid` give; the smaller of the two.
    subordinate: u64,
    /// Whether newuidmap(1) and newgidmap(1) are there.
    mappers: bool,
}

fn look_user_namespaces() -> UserNamespaces {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let uid = nix::unistd::geteuid();
    let user = (!uid.is_root()).then(|| {
        let entry = crate::sys::user::by_id(uid.as_raw()).ok().flatten();
        let name = entry.map_or_else(|| uid.to_string(), |entry| entry.name);
        let ids = |path: &str| count(&subordinates(path, Some(&name), uid.as_raw()).unwrap_or_default());
        let subordinate = ids("/etc/subuid").min(ids("/etc/subgid"));
        let mappers = program::find("newuidmap").is_some() && program::find("newgidmap").is_some();
        User { name, subordinate, mappers }
    });
    UserNamespaces {
        max: File::open("/proc/self/ns/user").ok().and_then(|_| number("/proc/sys/user/max_user_namespaces")),
        forbidden: number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0),
        restricted: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1),
        user,
    }
}

fn count(ranges: &[Subordinate]) -> u64 {
    ranges.iter().map(|range| u64::from(range.count)).sum()
}

fn judge_user_namespaces(found: &UserNamespaces) -> Finding {
    let subject = "user namespaces";
    let max = match found.max {
        None => {
            return Finding::warn(subject, "the kernel has none", "boot a kernel with CONFIG_USER_NS");
        }
        Some(0) => {
            return Finding::warn(subject, "none may be made", "sysctl -w user.max_user_namespaces=15000");
        }
        Some(max) => max,
    };
    let Some(user) = &found.user else {
        return Finding::ok(subject, format!("up to {max} may be made"));
    };
    if found.forbidden {
        let mend = "sudo sysctl -w kernel.unprivileged_userns_clone=1";
        return Finding::fail(subject, "ordinary users may make none", mend);
    }
    if found.restricted {
        let mend = "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0";
        return Finding::fail(subject, "AppArmor keeps ordinary users from using them", mend);
    }
    if user.subordinate < SUBORDINATE_IDS {
        let text = format!("{} has {} subordinate ids, containers have one id then", user.name, user.subordinate);
        let mend = format!("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {}", user.name);
        return Finding::warn(subject, text, mend);
    }
    if !user.mappers {
        return Finding::warn(subject, "newuidmap and newgidmap are not there", "sudo apt-get install uidmap");
    }
    Finding::ok(subject, format!("up to {max} may be made, {} has {} subordinate ids", user.name, user.subordinate))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::ops::doctor::Status;
    use crate::sys::user::parse_subordinates;

    #[test]
    fn kernels_are_judged_by_what_they_lack() {
        let status = |release: &str| judge_version(release).status;
        assert_eq!(status("5.10.0-28-amd64"), Status::Fail);
        assert_eq!(status("5.11.22"), Status::Fail);
        assert_eq!(status("5.12.0"), Status::Warn);
        assert_eq!(status("6.1.0-18-cloud-amd64"), Status::Warn);
        assert_eq!(status("6.7.1"), Status::Ok);
        assert_eq!(status("10.0-rc1"), Status::Ok);
        assert_eq!(status("unheard of"), Status::Warn);
    }

    #[test]
    fn an_overlay_without_a_feature_that_every_ring_needs_is_a_failure() {
        assert_eq!(judge_overlay(Ok(vec![])).status, Status::Ok);
        assert_eq!(judge_overlay(Ok(vec!["lowerdir+"])).status, Status::Ok);
        assert_eq!(judge_overlay(Ok(vec!["userxattr"])).status, Status::Warn);
        let finding = judge_overlay(Ok(vec!["lowerdir+", "redirect_dir"]));
        assert!(finding.status == Status::Fail && finding.text.contains("redirect_dir"), "{finding:?}");
        let none = Error::new(Kind::Unsupported, "open overlay", "no such device");
        assert_eq!(judge_overlay(Err(none)).mend.as_deref(), Some("modprobe overlay"));
    }

    #[test]
    fn filters_without_notification_are_half_of_it() {
        assert_eq!(judge_seccomp(Some("kill_process errno user_notif log allow\n")).status, Status::Ok);
        assert_eq!(judge_seccomp(Some("kill errno allow")).status, Status::Warn);
        assert_eq!(judge_seccomp(None).status, Status::Fail);
    }

    #[test]
    fn a_call_that_is_absent_or_forbidden_is_no_failure() {
        assert_eq!(judge_pidfd_getfd(Ok(())).status, Status::Ok);
        assert_eq!(judge_pidfd_getfd(Err(Errno::NOSYS)).status, Status::Warn);
        assert_eq!(judge_pidfd_getfd(Err(Errno::PERM)).status, Status::Warn);
    }

    #[test]
    fn only_ordinary_users_need_the_administrators_leave_and_subordinate_ids() {
        let root = UserNamespaces { max: Some(7), forbidden: true, restricted: true, user: None };
        assert_eq!(judge_user_namespaces(&root).status, Status::Ok);
        assert_eq!(judge_user_namespaces(&UserNamespaces { max: Some(0), ..root.clone() }).status, Status::Warn);
        assert_eq!(judge_user_namespaces(&UserNamespaces { max: None, ..root.clone() }).status, Status::Warn);
        let user = User { name: "ann".into(), subordinate: 65_536, mappers: true };
        let free = UserNamespaces { max: Some(7), user: Some(user.clone()), ..UserNamespaces::default() };
        assert_eq!(judge_user_namespaces(&free).status, Status::Ok);
        assert_eq!(judge_user_namespaces(&UserNamespaces { forbidden: true, ..free.clone() }).status, Status::Fail);
        assert_eq!(judge_user_namespaces(&UserNamespaces { restricted: true, ..free.clone() }).status, Status::Fail);
        let poor = UserNamespaces { user: Some(User { subordinate: 1, ..user.clone() }), ..free.clone() };
        assert!(judge_user_namespaces(&poor).mend.unwrap().ends_with(" ann"));
        let bare = UserNamespaces { user: Some(User { mappers: false, ..user }), ..free };
        assert!(judge_user_namespaces(&bare).mend.unwrap().ends_with(" uidmap"));
    }

    #[test]
    fn subordinate_ids_are_given_by_name_or_number_and_add_up() {
        let table = "ann:100000:65536\nbob:1:1\n1000:300000:10\nbroken\nann:x:y\n";
        assert_eq!(count(&parse_subordinates(table, Some("ann"), 1000)), 65_546);
        assert_eq!(count(&parse_subordinates(table, Some("eve"), 7)), 0);
    }
}
