//! Users of the machine who exist for one test.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use nix::unistd::User;

use super::{Output, REGEN, World};

/// The database of users is changed by one at a time.
static USERS: Mutex<()> = Mutex::new(());

/// Whether a user may use more ids than the own one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subordinates {
    /// As useradd gives them.
    Some,
    /// None.
    None,
}

/// An ordinary user, with a home, a directory for what runs, and the program where the user can reach it.
#[derive(Debug)]
pub struct Person<'a> {
    world: &'a World,
    /// Their entry in the database.
    pub user: User,
}

impl<'a> Person<'a> {
    /// Makes one; `world` holds their directories.
    pub fn new(world: &'a World, subordinates: Subordinates) -> Self {
        // At most 32 letters, of which the first is a letter.
        let name = format!("u{}", world.id(""));
        let name = name.trim_end_matches('-');
        let home = world.base().join("home");
        let mut make = Command::new("useradd");
        make.args(["--create-home", "--shell", "/bin/sh", "--home-dir"]).arg(&home);
        if subordinates == Subordinates::None {
            make.args(["--key", "SUB_UID_COUNT=0", "--key", "SUB_GID_COUNT=0"]);
        }
        make.arg(name);
        let guard = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        world.finish(make).success();
        drop(guard);
        let user = User::from_name(name).unwrap().unwrap();
        let person = Self { world, user };
        let listed = fs::read_to_string("/etc/subuid").unwrap().contains(&format!("{name}:"));
        assert_eq!(listed, subordinates == Subordinates::Some, "subordinate ids of {name}");
        for directory in ["xdg", "bin", "run", "store"] {
            fs::create_dir_all(person.path(directory)).unwrap();
            chown(person.path(directory), Some(person.user.uid.as_raw()), Some(person.user.gid.as_raw())).unwrap();
        }
        // What belongs to ids that a user does not have is closed to them, also where an overlay lies over it.
        let mut own = Command::new("chown");
        own.arg("-hR").arg(format!("{}:{}", person.user.uid, person.user.gid)).arg(world.rootfs());
        world.finish(own).success();
        // The program is where tests are built, which an ordinary user need not be able to reach.
        fs::copy(REGEN, person.path("bin/regen")).unwrap();
        fs::set_permissions(person.path("bin/regen"), fs::Permissions::from_mode(0o755)).unwrap();
        person
    }

    /// A path below the world.
    pub fn path(&self, name: &str) -> PathBuf {
        self.world.base().join(name)
    }

    /// A program as the user, with what a login would give them.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={}", self.user.uid)).arg(format!("--regid={}", self.user.gid));
        command.args(["--init-groups", "--", program]).args(arguments);
        let path = format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", self.path("bin").display());
        command.env_clear().env("PATH", path).env("USER", &self.user.name);
        command.env("HOME", self.path("home")).env("XDG_RUNTIME_DIR", self.path("xdg")).current_dir(self.path("home"));
        command
    }

    /// Runs regen on the directories of the world.
    pub fn regen(&self, arguments: &[&str]) -> Output {
        let (root, store) = (self.world.root(), self.world.store());
        let places = ["--root", root.to_str().unwrap(), "--store", store.to_str().unwrap()];
        self.world.finish(self.command("regen", &[&places, arguments].concat()))
    }

    /// Runs a script in the world's root file system, in a fresh container with these flags.
    pub fn run(&self, flags: &[&str], script: &str) -> Output {
        let (rootfs, id) = (self.world.rootfs_text(), self.world.fresh_id());
        self.regen(&[&["run", "--rootfs", &rootfs], flags, &[&id, "--", "sh", "-c", script]].concat())
    }
}

impl Drop for Person<'_> {
    fn drop(&mut self) {
        let _guard = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        let mut remove = Command::new("userdel");
        remove.arg("--force").arg(&self.user.name);
        let _ = self.world.finish(remove);
    }
}
