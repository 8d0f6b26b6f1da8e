//! bpf(2), as far as device rules of cgroup version 2 and the choice among sockets of one port need it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::error::{Context, Result};

/// `struct bpf_insn` of linux/bpf.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Instruction {
    /// Class, operation and source.
    pub code: u8,
    /// Destination in the low four bits, source in the high ones (little-endian machines; see [`Instruction`]).
    pub registers: u8,
    /// Of a jump, in instructions; of a load, in bytes.
    pub offset: i16,
    /// A constant.
    pub immediate: i32,
}

impl Instruction {
    /// The two registers are bit fields, which compilers lay out by the machine's byte order.
    fn native(mut self) -> Self {
        if cfg!(target_endian = "big") {
            self.registers = self.registers.rotate_left(4);
        }
        self
    }
}

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_MAP_TYPE_REUSEPORT_SOCKARRAY: u32 = 20;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_PROG_TYPE_SK_REUSEPORT: u32 = 21;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_SK_REUSEPORT_SELECT_OR_MIGRATE: u32 = 40;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes those that are left out as zero.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

/// The same for `BPF_MAP_CREATE`.
#[repr(C)]
struct Create {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// The same for `BPF_MAP_UPDATE_ELEM` and `BPF_MAP_LOOKUP_ELEM`.
#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The same for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct Ask {
    object: u32,
    length: u32,
    answer: u64,
}

/// The first fields of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// What a program is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To decide about devices.
    Device,
    /// To choose among the sockets of one port: for new connections, and also for waiting ones of a socket that closes.
    SelectOrMigrate,
    /// As before, for new connections only.
    Select,
}

impl Purpose {
    /// The type of the program and its expected attach type, where 0 is the type's own.
    fn numbers(self) -> (u32, u32) {
        match self {
            Self::Device => (BPF_PROG_TYPE_CGROUP_DEVICE, 0),
            Self::SelectOrMigrate => (BPF_PROG_TYPE_SK_REUSEPORT, BPF_SK_REUSEPORT_SELECT_OR_MIGRATE),
            Self::Select => (BPF_PROG_TYPE_SK_REUSEPORT, 0),
        }
    }

    fn operation(self) -> &'static str {
        match self {
            Self::Device => "load the device program",
            Self::SelectOrMigrate | Self::Select => "load the program that chooses among sockets",
        }
    }
}

/// The same for `BPF_PROG_ATTACH`.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Loads a device program and attaches it to a cgroup, beside those that are there: an access is allowed if all of them
/// allow it. The program goes with the cgroup.
///
/// # Errors
/// Those of bpf(2), `EPERM` above all; with the verifier's last words if it finds fault with the program.
pub fn attach_device_program(program: &[Instruction], cgroup: &File) -> Result<()> {
    let program = load(Purpose::Device, program)?;
    let attributes = Attach {
        target: number(cgroup.as_raw_fd()),
        program: number(program.as_raw_fd()),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    call(BPF_PROG_ATTACH, &attributes).map(drop).context(|| "attach the device program")
}

/// Loads a program that chooses among the sockets of a group (`BPF_PROG_TYPE_SK_REUSEPORT`). Kernels before 5.14 know no
/// migration: there what waits in a socket that closes is lost.
///
/// # Errors
/// Those of bpf(2), `EPERM` above all; with the verifier's last words if it finds fault with the program.
pub fn load_selecting_program(program: &[Instruction]) -> Result<OwnedFd> {
    match load(Purpose::SelectOrMigrate, program) {
        Err(error) if error.errno() == Some(libc::EINVAL) => load(Purpose::Select, program),
        other => other,
    }
}

/// A map for such a program with room for so many sockets (`BPF_MAP_TYPE_REUSEPORT_SOCKARRAY`).
///
/// # Errors
/// Those of bpf(2), `EPERM` above all.
pub fn make_socket_map(room: u32) -> Result<OwnedFd> {
    let attributes =
        Create { kind: BPF_MAP_TYPE_REUSEPORT_SOCKARRAY, key_size: 4, value_size: 8, max_entries: room, flags: 0 };
    let map = call(BPF_MAP_CREATE, &attributes).context(|| "make a map of sockets")?;
    // SAFETY: the kernel has just returned this descriptor to us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(map) })
}

/// Puts a socket at a place of such a map, counted from 0.
///
/// # Errors
/// Those of bpf(2): `EINVAL` for a socket that is in no group, `EBUSY` for one that is in a map already.
pub fn put_socket(map: BorrowedFd<'_>, place: u32, socket: BorrowedFd<'_>) -> Result<()> {
    let value = u64::from(number(socket.as_raw_fd()));
    let attributes = Element {
        map: number(map.as_raw_fd()),
        padding: 0,
        key: address(&raw const place),
        value: address(&raw const value),
        flags: 0,
    };
    call(BPF_MAP_UPDATE_ELEM, &attributes).map(drop).context(|| "put a socket into a map")
}

/// Whether a socket is at a place of such a map.
///
/// # Errors
/// Those of bpf(2), apart from `ENOENT`.
pub fn has_socket(map: BorrowedFd<'_>, place: u32) -> Result<bool> {
    let mut cookie = 0_u64;
    let attributes = Element {
        map: number(map.as_raw_fd()),
        padding: 0,
        key: address(&raw const place),
        value: address(&raw mut cookie),
        flags: 0,
    };
    match call(BPF_MAP_LOOKUP_ELEM, &attributes) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error).context(|| "look into a map of sockets"),
    }
}

/// For how many sockets such a map has room; `None` if the descriptor is no such map.
///
/// # Errors
/// Those of bpf(2), apart from that of what is no object of it.
pub fn socket_map_room(map: BorrowedFd<'_>) -> Result<Option<u32>> {
    let mut info = MapInfo::default();
    let attributes = Ask {
        object: number(map.as_raw_fd()),
        length: u32::try_from(size_of::<MapInfo>()).unwrap_or_default(),
        answer: address(&raw mut info),
    };
    match call(BPF_OBJ_GET_INFO_BY_FD, &attributes) {
        Ok(_) => Ok((info.kind == BPF_MAP_TYPE_REUSEPORT_SOCKARRAY).then_some(info.max_entries)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EBADF)) => Ok(None),
        Err(error) => Err(error).context(|| "look at a map of sockets"),
    }
}

fn load(purpose: Purpose, program: &[Instruction]) -> Result<OwnedFd> {
    let program: Vec<Instruction> = program.iter().map(|instruction| instruction.native()).collect();
    let (kind, expected_attach_type) = purpose.numbers();
    let mut attributes = Load {
        kind,
        instruction_count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: address(program.as_ptr()),
        license: address(c"Apache-2.0".as_ptr()),
        expected_attach_type,
        ..Load::default()
    };
    let result = match call(BPF_PROG_LOAD, &attributes) {
        // Only a program that the verifier refuses is loaded again, for its reasons: the log costs memory.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES)) => {
            let mut log = vec![0_u8; 64 << 10];
            attributes.log_level = 1;
            attributes.log_size = u32::try_from(log.len()).unwrap_or_default();
            attributes.log_buffer = address(log.as_mut_ptr());
            call(BPF_PROG_LOAD, &attributes).context(|| {
                let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
                let text = String::from_utf8_lossy(&log[..end]);
                let words = text.lines().rfind(|line| !line.starts_with("processed")).unwrap_or_default();
                format!("{} ({words})", purpose.operation())
            })?
        }
        other => other.context(|| purpose.operation())?,
    };
    // SAFETY: the kernel has just returned this descriptor to us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// A descriptor or zero.
fn call<T>(command: libc::c_int, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: the structure is one of those above, laid out as the command's part of union bpf_attr and of the size
    // that is given; what its addresses point to lives in the caller across the call, and is written only if it is a
    // log buffer or the place of an answer, which the caller holds as mutable.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { RawFd::try_from(result).map_err(io::Error::other) }
}

fn address<T>(pointer: *const T) -> u64 {
    pointer as usize as u64
}

fn number(descriptor: RawFd) -> u32 {
    descriptor.cast_unsigned()
}
