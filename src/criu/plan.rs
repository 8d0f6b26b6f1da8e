//! criu's command lines.

use std::ffi::OsString;
use std::path::Path;

use super::{Afterwards, Allowed, CgroupMode, Dump, Restore};

/// An argument list that grows.
#[derive(Default)]
struct Words(Vec<OsString>);

impl Words {
    fn add(&mut self, word: impl Into<OsString>) {
        self.0.push(word.into());
    }

    fn pair(&mut self, flag: &str, value: impl Into<OsString>) {
        self.add(flag);
        self.add(value);
    }

    fn flag(&mut self, flag: &str, wanted: bool) {
        if wanted {
            self.add(flag);
        }
    }

    fn allowed(&mut self, allowed: Allowed) {
        self.flag("--tcp-established", allowed.tcp_established);
        self.flag("--ext-unix-sk", allowed.external_unix_sockets);
        self.flag("--shell-job", allowed.shell_job);
        self.flag("--file-locks", allowed.file_locks);
    }

    fn common(&mut self, images: &Path, work: &Path, log: &str, cgroups: CgroupMode) {
        self.pair("--images-dir", images);
        self.pair("--work-dir", work);
        self.pair("--log-file", log);
        self.add("-v4");
        let mode = match cgroups {
            CgroupMode::Soft => "soft",
            CgroupMode::Full => "full",
            CgroupMode::Strict => "strict",
            CgroupMode::Ignore => "ignore",
        };
        self.add(format!("--manage-cgroups={mode}"));
    }

    fn external(&mut self, key: &Path, value: &Path) {
        let mut word = OsString::from("mnt[");
        word.push(key);
        word.push("]:");
        word.push(value);
        self.pair("--external", word);
    }
}

/// The arguments of a dump.
#[must_use]
pub fn plan_dump(request: &Dump, log: &str) -> Vec<OsString> {
    let mut words = Words::default();
    words.add(match request.afterwards {
        Afterwards::Killed | Afterwards::Running => "dump",
        Afterwards::MemoryOnly => "pre-dump",
    });
    words.pair("--tree", request.pid.to_string());
    words.common(&request.images, &request.work, log, request.cgroups);
    words.allowed(request.allowed);
    words.flag("--leave-running", request.afterwards == Afterwards::Running);
    // What the next dump can leave out is known only if the kernel notes what is written from now on.
    words.flag("--track-mem", request.afterwards == Afterwards::MemoryOnly || request.parent.is_some());
    if let Some(parent) = &request.parent {
        words.pair("--prev-images-dir", parent);
    }
    if let Some(freezer) = &request.freezer {
        words.pair("--freeze-cgroup", freezer);
    }
    if request.empty_network {
        words.pair("--empty-ns", "net");
    }
    words.flag("--auto-dedup", request.deduplicate);
    for mount in &request.external_mounts {
        words.external(mount, mount);
    }
    if let Some(server) = &request.page_server {
        words.add("--page-server");
        words.pair("--address", &server.address);
        words.pair("--port", server.port.to_string());
    }
    if let Some(descriptor) = request.lazy_pages {
        words.add("--lazy-pages");
        if descriptor >= 0 {
            words.pair("--status-fd", descriptor.to_string());
        }
    }
    words.0
}

/// The arguments of a restore: the root process is a child of criu's own parent, stopped, and its pid is in a file.
#[must_use]
pub fn plan_restore(request: &Restore, log: &str, pid_file: &Path) -> Vec<OsString> {
    let mut words = Words::default();
    words.add("restore");
    words.add("--restore-detached");
    words.add("--restore-sibling");
    words.add("--leave-stopped");
    words.pair("--pidfile", pid_file);
    words.common(&request.images, &request.work, log, request.cgroups);
    words.pair("--root", &request.root);
    words.allowed(request.allowed);
    for (controllers, root) in &request.cgroup_roots {
        let mut word = OsString::from(if controllers.is_empty() { String::new() } else { format!("{controllers}:") });
        word.push(root);
        words.pair("--cgroup-root", word);
    }
    if request.empty_network {
        words.pair("--empty-ns", "net");
    }
    words.flag("--auto-dedup", request.deduplicate);
    // The newer way to make mounts copies the sharing of one volume to the next, which the kernel refuses where neither
    // lies in the other: as of two that came from one file system.
    words.flag("--mntns-compat-mode", !request.external_mounts.is_empty());
    for (point, source) in &request.external_mounts {
        words.external(point, source);
    }
    for (descriptor, name) in &request.inherited {
        words.pair("--inherit-fd", format!("fd[{descriptor}]:{name}"));
    }
    words.flag("--lazy-pages", request.lazy_pages);
    if let Some(profile) = &request.lsm_profile {
        words.pair("--lsm-profile", profile);
    }
    if let Some(context) = &request.lsm_mount_context {
        words.pair("--lsm-mount-context", context);
    }
    words.0
}

#[cfg(test)]
mod tests {
    use super::super::PageServer;
    use super::*;

    fn dump() -> Dump {
        Dump {
            pid: 7,
            images: "/i".into(),
            work: "/w".into(),
            parent: None,
            afterwards: Afterwards::Killed,
            allowed: Allowed::default(),
            cgroups: CgroupMode::Soft,
            freezer: None,
            empty_network: false,
            deduplicate: false,
            external_mounts: Vec::new(),
            page_server: None,
            lazy_pages: None,
        }
    }

    fn text(words: &[OsString]) -> String {
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_dump_says_only_what_is_asked_for() {
        let plain = text(&plan_dump(&dump(), "dump.log"));
        let words = "dump --tree 7 --images-dir /i --work-dir /w --log-file dump.log -v4 --manage-cgroups=soft";
        assert_eq!(plain, words);
        let full = Dump {
            parent: Some("../before".into()),
            afterwards: Afterwards::Running,
            allowed: Allowed { tcp_established: true, shell_job: true, ..Allowed::default() },
            cgroups: CgroupMode::Ignore,
            freezer: Some("/f".into()),
            empty_network: true,
            external_mounts: vec!["/data".into()],
            page_server: Some(PageServer { address: "::1".into(), port: 9 }),
            lazy_pages: Some(-1),
            ..dump()
        };
        let full = text(&plan_dump(&full, "dump.log"));
        assert_eq!(
            full.strip_prefix("dump --tree 7 --images-dir /i --work-dir /w --log-file dump.log -v4 ").unwrap(),
            "--manage-cgroups=ignore --tcp-established --shell-job --leave-running --track-mem --prev-images-dir \
             ../before --freeze-cgroup /f --empty-ns net --external mnt[/data]:/data --page-server --address ::1 --port 9 \
             --lazy-pages"
        );
    }

    #[test]
    fn a_memory_only_dump_notes_what_is_written_after_it() {
        let words = text(&plan_dump(&Dump { afterwards: Afterwards::MemoryOnly, ..dump() }, "dump.log"));
        assert!(words.starts_with("pre-dump ") && words.ends_with("--track-mem"), "{words}");
    }

    #[test]
    fn a_restore_names_roots_and_what_comes_from_outside() {
        let request = Restore {
            images: "/i".into(),
            work: "/w".into(),
            root: "/r".into(),
            allowed: Allowed::default(),
            cgroups: CgroupMode::Soft,
            cgroup_roots: vec![("cpu,cpuacct".into(), "/c".into()), (String::new(), "/u".into())],
            empty_network: false,
            deduplicate: false,
            external_mounts: vec![("/data".into(), "/host".into())],
            inherited: vec![(1, "pipe:[5]".into())],
            lazy_pages: false,
            lsm_profile: None,
            lsm_mount_context: None,
            mask: None,
        };
        let words = text(&plan_restore(&request, "restore.log", Path::new("/p")));
        let rest = words.split_once("--root /r ").unwrap().1;
        let expected = "--cgroup-root cpu,cpuacct:/c --cgroup-root /u --mntns-compat-mode --external mnt[/data]:/host --inherit-fd fd[1]:pipe:[5]";
        assert_eq!(rest, expected);
    }
}
