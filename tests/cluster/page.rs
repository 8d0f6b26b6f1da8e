//! docs/cluster.md, as its reader types it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use nix::sys::signal::Signal;

use crate::harness::site::Site;
use crate::harness::{REGEN, eventually};

#[test]
fn the_commands_of_the_page_make_a_cluster_and_use_it() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cluster.md")).unwrap();
    // The page's hosts are those of the site; their names there are others.
    let page = page.replace("10.0.0.", "10.77.0.");
    let blocks: Vec<_> = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let [etcd, certificates, daemons, use_them] = blocks[..] else { panic!("{blocks:#?}") };
    let site = Site::new("page", 3);
    let base = site.world().base();
    symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join("hack"), base.join("hack")).unwrap();
    for index in 0..3 {
        symlink(site.world().rootfs(), base.join(format!("hosts/n{index}/debian"))).unwrap();
    }
    // The first member as it is on the page, the others as the page says.
    for index in 0..3 {
        let (host, data) = (site.host(index), base.join(format!("hosts/n{index}/etcd")));
        let own = |text: &str| {
            let (peers, line) = text.split_once("\netcd ").unwrap();
            let line = line.replace("--name n1", &format!("--name n{}", index + 1));
            let line = line.replace("//10.77.0.1:", &format!("//{}:", host.address));
            format!("{peers}; exec etcd {}", line.replace("/var/lib/etcd", data.to_str().unwrap()))
        };
        let place = base.join(format!("hosts/n{index}"));
        site.shell(index, &format!("cd {}; ({}) >log 2>&1 & echo $! >etcd.pid", place.display(), own(etcd).trim()));
    }
    let _members = Members(&site);
    site.await_member(0);
    let mut make = std::process::Command::new("bash");
    make.args(["-eux", "-c", certificates]).current_dir(base);
    site.world().finish(make).success();
    let (variable, lines) = daemons.split_once('\n').unwrap();
    let url = variable.split_once('=').unwrap().1;
    for (index, line) in lines.lines().enumerate() {
        let certificates = base.join("certs");
        let line = line.split(" # ").next().unwrap().replace("$cluster", url);
        let line = line.replace(" certs/", &format!(" {}/", certificates.display()));
        let options: Vec<_> = line.split_whitespace().skip(2).collect();
        site.start(index, &options);
    }
    eventually("all know all", || site.json(0, &["node", "ls", "--json"]).as_array().unwrap().len() == 3);
    let (programs, host) = (base.join("programs"), site.host(0));
    fs::create_dir(&programs).unwrap();
    let script =
        format!("#!/bin/sh\nexec {REGEN} --root {} --store {} \"$@\"\n", host.root().display(), host.store().display());
    fs::write(programs.join("regen"), script).unwrap();
    fs::set_permissions(programs.join("regen"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = base.join("use");
    fs::write(
        &path,
        format!("cd {}\nPATH={}:$PATH\nset -eux\n{use_them}", base.join("hosts/n0").display(), programs.display()),
    )
    .unwrap();
    site.shell(0, &format!("timeout 100 bash {} 2>&1 || {{ echo it ended with $?; exit 1; }}", path.display()));
    (0..3).for_each(|index| drop(site.end(index, Signal::SIGTERM)));
}

/// What the page's etcd has begun.
struct Members<'a>(&'a Site);

impl Drop for Members<'_> {
    fn drop(&mut self) {
        for index in 0..3 {
            let file = self.0.world().base().join(format!("hosts/n{index}/etcd.pid"));
            let script = format!(
                "pid=$(cat {}); for try in $(seq 100); do kill -9 $pid 2>&1 || break; sleep 0.05; done",
                file.display()
            );
            self.0.shell(index, &script);
        }
    }
}
