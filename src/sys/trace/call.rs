//! System calls as values: what another process is to call, with which arguments.
//!
//! A call that takes memory finds it from the beginning of the *scratch* area of the process that makes it; whoever
//! describes the call names the area's address, and whoever injects it writes [`Call::memory`] there first.

use rustix::thread::CapabilitySet;

use crate::sys::seccomp::Instruction;

/// The number of a system call on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Syscall(libc::c_long);

impl Syscall {
    /// As the kernel has it in a register.
    #[must_use]
    pub(super) fn number(self) -> u64 {
        self.0.cast_unsigned()
    }
}

/// The numbers that a filter that stops forks has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Syscalls {
    /// clone(2)
    pub clone: u32,
    /// clone3(2)
    pub clone3: u32,
    /// fork(2), where there is one.
    pub fork: Option<u32>,
}

/// Those of this machine.
#[expect(clippy::cast_possible_truncation, reason = "the kernel's numbers have three digits")]
pub const SYSCALLS: Syscalls = Syscalls {
    clone: libc::SYS_clone as u32,
    clone3: libc::SYS_clone3 as u32,
    #[cfg(target_arch = "x86_64")]
    fork: Some(libc::SYS_fork as u32),
    #[cfg(not(target_arch = "x86_64"))]
    fork: None,
};

/// A call with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What an error calls it.
    pub name: &'static str,
    pub(super) syscall: Syscall,
    pub(super) arguments: [u64; 6],
    /// What has to lie in the scratch area.
    pub memory: Vec<u8>,
    /// The address of that.
    pub(super) scratch: u64,
}

/// How a received message lies in the scratch area.
struct Message;

/// A filter's program as seccomp(2) reads it.
struct Program;

const PRCTL: Syscall = Syscall(libc::SYS_prctl);

impl Call {
    fn new<const N: usize>(name: &'static str, syscall: libc::c_long, given: [u64; N]) -> Self {
        let mut arguments = [0; 6];
        arguments[..N].copy_from_slice(&given);
        Self { name, syscall: Syscall(syscall), arguments, memory: Vec::new(), scratch: 0 }
    }

    fn prctl(name: &'static str, option: libc::c_int, value: u64) -> Self {
        let arguments = [number(option), value, 0, 0, 0, 0];
        Self { name, syscall: PRCTL, arguments, memory: Vec::new(), scratch: 0 }
    }

    fn with(mut self, memory: Vec<u8>, scratch: u64) -> Self {
        (self.memory, self.scratch) = (memory, scratch);
        self
    }

    /// mmap(2): memory of its own, to read and write.
    #[must_use]
    pub fn map(size: u64) -> Self {
        let protection = number(libc::PROT_READ | libc::PROT_WRITE);
        let flags = number(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        Self::new("mmap", libc::SYS_mmap, [0, size, protection, flags, u64::MAX, 0])
    }

    /// munmap(2)
    #[must_use]
    pub fn unmap(address: u64, size: u64) -> Self {
        Self::new("munmap", libc::SYS_munmap, [address, size])
    }

    /// madvise(`MADV_DONTFORK`): children that get a copy of the memory do not get this part.
    #[must_use]
    pub fn keep_from_children(address: u64, size: u64) -> Self {
        Self::new("madvise", libc::SYS_madvise, [address, size, number(libc::MADV_DONTFORK)])
    }

    /// clone(2): a process that shares the caller's memory and signal handlers, of the same parent.
    #[must_use]
    pub fn clone_sibling() -> Self {
        let flags = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_PARENT;
        Self::new("clone", libc::SYS_clone, [number(flags)])
    }

    /// clone(2) as another process's fork(2) would have called it with these arguments: a copy of the memory, and the
    /// thread's id written where that one wanted it.
    #[must_use]
    pub fn fork_as(arguments: [u64; 6]) -> Self {
        let kept = number(libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID);
        let flags = arguments[0] & kept | number(libc::SIGCHLD);
        // flags, stack, parent's copy of the id, child's copy of it
        Self::new("clone", libc::SYS_clone, [flags, 0, 0, arguments[3]])
    }

    /// The call of clone(2) by which another process forks in the place of one that is stopped at the begin of a fork;
    /// `None` if that wants more than fork(2) gives: namespaces, a stack, something shared.
    #[must_use]
    pub fn instead_of(registers: &super::Registers) -> Option<Self> {
        let (call, arguments) = registers.call();
        let is = |other: u32| call == u64::from(other);
        if SYSCALLS.fork.is_some_and(is) {
            return Some(Self::fork_as([number(libc::SIGCHLD), 0, 0, 0, 0, 0]));
        }
        let ids = libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::CLONE_PARENT_SETTID;
        let plain = arguments[0] & !number(ids | libc::CSIGNAL) == 0 && arguments[1] == 0;
        (is(SYSCALLS.clone) && plain).then(|| Self::fork_as(arguments))
    }

    /// setns(2)
    #[must_use]
    pub fn join(descriptor: u64, namespaces: nix::sched::CloneFlags) -> Self {
        Self::new("setns", libc::SYS_setns, [descriptor, number(namespaces.bits())])
    }

    /// close_range(2)
    #[must_use]
    pub fn close(first: u32, last: u32) -> Self {
        Self::new("close_range", libc::SYS_close_range, [first.into(), last.into(), 0])
    }

    /// write(2) of `0` to a cgroup's file, by which the caller moves there.
    #[must_use]
    pub fn enter_cgroup(descriptor: u64, scratch: u64) -> Self {
        Self::new("write", libc::SYS_write, [descriptor, scratch, 1]).with(b"0".to_vec(), scratch)
    }

    /// fchdir(2)
    #[must_use]
    pub fn enter_directory(descriptor: u64) -> Self {
        Self::new("fchdir", libc::SYS_fchdir, [descriptor])
    }

    /// keyctl(`KEYCTL_JOIN_SESSION_KEYRING`): a session keyring without a name.
    #[must_use]
    pub fn new_keyring() -> Self {
        Self::new("keyctl", libc::SYS_keyctl, [1, 0])
    }

    /// setsid(2)
    #[must_use]
    pub fn begin_session() -> Self {
        Self::new("setsid", libc::SYS_setsid, [])
    }

    /// ioctl(`TIOCSCTTY`) of standard input.
    #[must_use]
    pub fn take_terminal() -> Self {
        Self::new("ioctl", libc::SYS_ioctl, [0, libc::TIOCSCTTY, 0])
    }

    /// umask(2)
    #[must_use]
    pub fn set_umask(mask: u32) -> Self {
        Self::new("umask", libc::SYS_umask, [mask.into()])
    }

    /// setgroups(2)
    #[must_use]
    pub fn set_groups(groups: &[u32], scratch: u64) -> Self {
        let memory: Vec<u8> = groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
        Self::new("setgroups", libc::SYS_setgroups, [groups.len() as u64, scratch]).with(memory, scratch)
    }

    /// setresgid(2)
    #[must_use]
    pub fn set_group(gid: u32) -> Self {
        Self::new("setresgid", libc::SYS_setresgid, [u64::from(gid); 3])
    }

    /// setresuid(2)
    #[must_use]
    pub fn set_user(uid: u32) -> Self {
        Self::new("setresuid", libc::SYS_setresuid, [u64::from(uid); 3])
    }

    /// prctl(`PR_SET_KEEPCAPS`): what is permitted stays so when the user changes.
    #[must_use]
    pub fn keep_capabilities(keep: bool) -> Self {
        Self::prctl("prctl", libc::PR_SET_KEEPCAPS, keep.into())
    }

    /// prctl(`PR_CAPBSET_DROP`), of the capability with this number.
    #[must_use]
    pub fn drop_bounding(capability: u32) -> Self {
        Self::prctl("prctl", libc::PR_CAPBSET_DROP, capability.into())
    }

    /// prctl(`PR_CAP_AMBIENT_CLEAR_ALL`)
    #[must_use]
    pub fn clear_ambient() -> Self {
        Self::prctl("prctl", libc::PR_CAP_AMBIENT, number(libc::PR_CAP_AMBIENT_CLEAR_ALL))
    }

    /// prctl(`PR_CAP_AMBIENT_RAISE`), of the capability with this number.
    #[must_use]
    pub fn raise_ambient(capability: u32) -> Self {
        let mut call = Self::prctl("prctl", libc::PR_CAP_AMBIENT, number(libc::PR_CAP_AMBIENT_RAISE));
        call.arguments[2] = capability.into();
        call
    }

    /// capset(2)
    #[must_use]
    pub fn set_capabilities(
        effective: CapabilitySet,
        permitted: CapabilitySet,
        inheritable: CapabilitySet,
        scratch: u64,
    ) -> Self {
        /// `_LINUX_CAPABILITY_VERSION_3`, which has two words for each set.
        const VERSION: u32 = 0x2008_0522;
        let sets = [effective.bits(), permitted.bits(), inheritable.bits()];
        let words = sets.map(super::halves);
        let low_then_high = if cfg!(target_endian = "little") { [0, 1] } else { [1, 0] };
        let data = low_then_high.into_iter().flat_map(|half| words.map(|word| word[half]));
        let memory = [VERSION, 0].into_iter().chain(data).flat_map(u32::to_ne_bytes).collect();
        Self::new("capset", libc::SYS_capset, [scratch, scratch + 8]).with(memory, scratch)
    }

    /// prctl(`PR_SET_NO_NEW_PRIVS`)
    #[must_use]
    pub fn forbid_new_privileges() -> Self {
        Self::prctl("prctl", libc::PR_SET_NO_NEW_PRIVS, 1)
    }

    /// prctl(`PR_SET_DUMPABLE`): its files in /proc are its user's, as of a program that was executed.
    #[must_use]
    pub fn be_dumpable() -> Self {
        Self::prctl("prctl", libc::PR_SET_DUMPABLE, 1)
    }

    /// seccomp(`SECCOMP_SET_MODE_FILTER`)
    #[must_use]
    pub fn load_filter(program: &[Instruction], flags: u32, scratch: u64) -> Self {
        let mode = u64::from(libc::SECCOMP_SET_MODE_FILTER);
        Self::new("seccomp", libc::SYS_seccomp, [mode, flags.into(), scratch])
            .with(Program::bytes(program, scratch), scratch)
    }

    /// recvmsg(2) of one byte with at most so many descriptors, which stay open over an execution.
    #[must_use]
    pub fn receive(socket: u64, descriptors: usize, scratch: u64) -> Self {
        let flags = number(libc::MSG_DONTWAIT);
        Self::new("recvmsg", libc::SYS_recvmsg, [socket, scratch, flags])
            .with(Message::bytes(descriptors, scratch), scratch)
    }

    /// rseq(2): registers an area for restartable sequences.
    #[must_use]
    pub fn register_sequences(area: super::Sequences) -> Self {
        let arguments = [area.address, area.size.into(), 0, area.signature.into()];
        Self::new("rseq", libc::SYS_rseq, arguments)
    }
}

impl Program {
    /// `struct sock_fprog`, with the program behind it.
    fn bytes(program: &[Instruction], scratch: u64) -> Vec<u8> {
        const HEADER: u64 = 16;
        // The kernel takes 4,096.
        let length = u16::try_from(program.len()).unwrap_or(u16::MAX);
        let mut bytes = vec![0; 8];
        bytes[..2].copy_from_slice(&length.to_ne_bytes());
        bytes.extend((scratch + HEADER).to_ne_bytes());
        bytes.extend(program.iter().flat_map(|instruction| instruction.to_bytes()));
        bytes
    }
}

impl Message {
    /// `struct msghdr`, `struct iovec`, a word for the byte, and room for the descriptors.
    fn bytes(descriptors: usize, scratch: u64) -> Vec<u8> {
        const IOVEC: u64 = 56;
        const BYTE: u64 = IOVEC + 16;
        const CONTROL: u64 = BYTE + 8;
        // A header of 16 bytes, and numbers of 4 that are padded to words.
        let room = 16 + (descriptors as u64 * 4).next_multiple_of(8);
        let words = [0, 0, scratch + IOVEC, 1, scratch + CONTROL, room, 0, scratch + BYTE, 1, 0];
        let mut bytes: Vec<u8> = words.into_iter().flat_map(u64::to_ne_bytes).collect();
        bytes.resize(bytes.len() + usize::try_from(room).unwrap_or_default(), 0);
        bytes
    }
}

/// A number of the C library, none of which is below zero here.
fn number(value: impl Into<i64>) -> u64 {
    value.into().cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_lies_behind_its_header() {
        let call = Call::load_filter(&[Instruction { code: 6, jt: 0, jf: 0, k: 7 }], 4, 0x1000);
        assert_eq!(call.arguments[..3], [1, 4, 0x1000]);
        assert_eq!(call.memory.len(), 24);
        assert_eq!(call.memory[8..16], 0x1010_u64.to_ne_bytes());
        assert_eq!(size_of::<libc::sock_fprog>(), 16);
    }

    #[test]
    fn a_message_has_the_layout_of_the_kernels() {
        assert_eq!((size_of::<libc::msghdr>(), size_of::<libc::iovec>()), (56, 16));
        // SAFETY: the macro is a sum.
        let room = unsafe { libc::CMSG_SPACE(5 * 4) };
        assert_eq!(Message::bytes(5, 0).len(), 80 + room as usize);
    }

    #[test]
    fn a_fork_keeps_what_concerns_the_child_only() {
        let asked = number(libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::CLONE_PARENT_SETTID);
        let call = Call::fork_as([asked | 17, 1, 2, 3, 4, 5]);
        let kept = number(libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD);
        assert_eq!(call.arguments, [kept, 0, 0, 3, 0, 0]);
    }
}
