//! User, groups and file mode mask, and who owns the standard streams.

use std::fs;

use oci_spec::runtime::User;
use rustix::fs::{FileType, Mode, fchown, fstat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, umask};
use rustix::thread::{set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::error::{Context, Error, Kind, Result};

/// The device number of /dev/null, whose owner is nobody's business.
const NULL: (u32, u32) = (1, 3);

/// What a process gets where the specification names no mask, as with runc.
const DEFAULT_UMASK: u32 = 0o022;

/// Who the process is.
#[derive(Debug)]
pub(super) struct Credentials {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    umask: Mode,
}

/// Decides who the process is.
pub(super) fn plan(user: &User) -> Result<Credentials> {
    let invalid = |field: &str| {
        Error::new(Kind::Invalid, format!("read process.user.{field}"), "4294967295 means no id at all")
            .next("choose another")
    };
    let gid = |id: u32, field| if id == u32::MAX { Err(invalid(field)) } else { Ok(Gid::from_raw(id)) };
    if user.uid() == u32::MAX {
        return Err(invalid("uid"));
    }
    let groups = user.additional_gids().iter().flatten().map(|id| gid(*id, "additionalGids")).collect::<Result<_>>()?;
    let umask = Mode::from_raw_mode(user.umask().unwrap_or(DEFAULT_UMASK) & 0o777);
    Ok(Credentials { uid: Uid::from_raw(user.uid()), gid: gid(user.gid(), "gid")?, groups, umask })
}

impl Credentials {
    /// The user's number.
    pub(super) fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    /// The group's number.
    pub(super) fn gid(&self) -> u32 {
        self.gid.as_raw()
    }

    /// The numbers of the additional groups.
    pub(super) fn groups(&self) -> Vec<u32> {
        self.groups.iter().map(|group| group.as_raw()).collect()
    }

    /// The mask for the files that the process makes.
    pub(super) fn umask(&self) -> u32 {
        self.umask.as_raw_mode()
    }

    /// Sets the mask for the files that the process makes.
    pub(super) fn set_umask(&self) {
        umask(self.umask);
    }

    /// Becomes the user. What is permitted stays permitted, and nothing is effective unless the user is root.
    pub(super) fn assume(&self) -> Result<()> {
        set_keep_capabilities(true).context(|| "keep capabilities over the change of user")?;
        self.own_standard_streams()?;
        self.set_groups()?;
        let unmapped = |errno: Errno, what: &str, id: u32| match errno {
            Errno::INVAL => {
                let operation = format!("set {what} {id}");
                Err(Error::new(Kind::Invalid, operation, "it is not mapped in the user namespace"))
            }
            errno => Err(errno).context(|| format!("set {what} {id}")),
        };
        set_thread_res_gid(self.gid, self.gid, self.gid).or_else(|errno| unmapped(errno, "gid", self.gid.as_raw()))?;
        set_thread_res_uid(self.uid, self.uid, self.uid).or_else(|errno| unmapped(errno, "uid", self.uid.as_raw()))?;
        set_keep_capabilities(false).context(|| "stop keeping capabilities")
    }

    /// In a user namespace that an ordinary user made for one group, setgroups(2) is denied for good. The groups then
    /// stay those of the caller, as with runc.
    fn set_groups(&self) -> Result<()> {
        match set_thread_groups(&self.groups) {
            Err(Errno::PERM) if is_setgroups_denied() => {
                if !self.groups.is_empty() {
                    tracing::warn!("additional groups are left out: this user namespace denies setgroups(2)");
                }
                Ok(())
            }
            Err(Errno::INVAL) => {
                Err(Error::new(Kind::Invalid, "set additional groups", "one is not mapped in the user namespace"))
            }
            result => result.context(|| "set additional groups"),
        }
    }

    /// Gives the standard streams to the user, so that it can open them again by /proc/self/fd (as runc does). The
    /// group is left alone: a terminal's says who may write to it.
    fn own_standard_streams(&self) -> Result<()> {
        let operation = || "give the standard streams to the user";
        let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        for stream in streams {
            let stat = match fstat(stream) {
                Ok(stat) => stat,
                Err(Errno::BADF) => continue,
                Err(errno) => return Err(errno).context(operation),
            };
            let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && device == NULL;
            if stat.st_uid == self.uid.as_raw() || is_null {
                continue;
            }
            match fchown(stream, Some(self.uid), None) {
                // Foreign to this user namespace, on a read-only file system, or of a kind that has no owner: it
                // works as it is, only opening it again may not.
                Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS | Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(errno) => return Err(errno).context(operation),
            }
        }
        Ok(())
    }
}

fn is_setgroups_denied() -> bool {
    fs::read("/proc/thread-self/setgroups").is_ok_and(|text| text.trim_ascii() == b"deny")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_that_means_nobody_is_refused() {
        let user = |value| serde_json::from_value::<User>(value).unwrap();
        for value in [
            serde_json::json!({"uid": u32::MAX, "gid": 0}),
            serde_json::json!({"uid": 0, "gid": u32::MAX}),
            serde_json::json!({"uid": 0, "gid": 0, "additionalGids": [1, u32::MAX]}),
        ] {
            assert_eq!(plan(&user(value)).unwrap_err().kind(), Kind::Invalid);
        }
        let named = plan(&user(serde_json::json!({"uid": 5, "gid": 6, "umask": 0o077}))).unwrap();
        assert_eq!((named.uid(), named.umask), (5, Mode::from_raw_mode(0o077)));
    }
}
