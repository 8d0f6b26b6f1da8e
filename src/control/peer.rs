//! Who calls, and what they may: decided by what the kernel says of the other end of the connection, or for a node by its
//! certificate.

use std::fmt;

use crate::error::Result;
use crate::ids::NodeName;
use crate::sys::stream::{Credentials, Stream};
use crate::sys::user;

/// The group whose members may look.
pub const GROUP: &str = "regen";

/// What somebody may do, from little to much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Nothing.
    Nothing,
    /// Look and resolve.
    Read,
    /// Everything.
    All,
}

/// A caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub origin: Origin,
    /// What they may do.
    pub access: Access,
}

/// Where a caller is, and who.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A user of this machine.
    User {
        /// The user.
        uid: u32,
        /// Their groups, the effective one first.
        groups: Vec<u32>,
        /// The process that connected, 0 if it is none of this pid namespace; another one may have the connection by now.
        pid: i32,
    },
    /// The daemon of another node, which a certificate of our authority names.
    Node(NodeName),
}

/// `user 1000`, `node 'n2'`
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User { uid, .. } => write!(f, "user {uid}"),
            Self::Node(name) => write!(f, "node '{name}'"),
        }
    }
}

impl Peer {
    /// Who is at the other end of a connection.
    ///
    /// # Errors
    /// Those of asking the kernel, and of reading the groups of this machine.
    pub fn of(stream: &Stream) -> Result<Self> {
        let credentials = stream.credentials()?;
        let own = nix::unistd::geteuid().as_raw();
        let access = match decide(&credentials, own, None) {
            // Only now, because most callers are root: whether there is such a group may change at any time.
            Access::Nothing => decide(&credentials, own, user::group_in_file(GROUP)?),
            access @ (Access::Read | Access::All) => access,
        };
        let Credentials { uid, groups, pid } = credentials;
        Ok(Self { origin: Origin::User { uid, groups, pid }, access })
    }

    /// A node. It may all that nodes may ([`super::Interface::reach`]).
    #[must_use]
    pub fn node(name: NodeName) -> Self {
        Self { origin: Origin::Node(name), access: Access::All }
    }

    /// The user, if it is one of this machine.
    #[must_use]
    pub fn uid(&self) -> Option<u32> {
        match &self.origin {
            Origin::User { uid, .. } => Some(*uid),
            Origin::Node(_) => None,
        }
    }
}

/// Root and the daemon's own user may do all, members of the group may look.
fn decide(credentials: &Credentials, own: u32, group: Option<u32>) -> Access {
    if credentials.uid == 0 || credentials.uid == own {
        Access::All
    } else if group.is_some_and(|group| credentials.groups.contains(&group)) {
        Access::Read
    } else {
        Access::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_own_user_may_do_all_members_may_look_others_nothing() {
        let of = |uid, groups: &[u32]| {
            let credentials = Credentials { uid, groups: groups.to_vec(), pid: 1 };
            decide(&credentials, 1000, Some(7))
        };
        assert_eq!(of(0, &[]), Access::All);
        assert_eq!(of(1000, &[1000]), Access::All);
        assert_eq!(of(1001, &[7]), Access::Read);
        assert_eq!(of(1001, &[1001, 27, 7]), Access::Read);
        assert_eq!(of(1001, &[1001, 0]), Access::Nothing);
        let credentials = Credentials { uid: 1001, groups: vec![7], pid: 1 };
        assert_eq!(decide(&credentials, 1000, None), Access::Nothing);
        assert!(Access::Nothing < Access::Read && Access::Read < Access::All);
    }
}
