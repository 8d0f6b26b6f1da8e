//! Scheduling of the calling process, and its personality: calls that no library offers.

use crate::error::{Context, Result};

/// What sched_setattr(2) sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// For SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub runtime: u64,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub deadline: u64,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub period: u64,
}

/// The kernel's `struct sched_attr` of 56 bytes.
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

/// Sets policy and parameters of the calling process.
///
/// # Errors
/// Those of sched_setattr(2).
pub fn set_scheduler(attributes: Attributes) -> std::io::Result<()> {
    let Attributes { policy, flags, nice, priority, runtime, deadline, period } = attributes;
    let size = u32::try_from(size_of::<SchedAttr>()).unwrap_or_default();
    let (util_min, util_max) = (0, 0);
    let attr = SchedAttr { size, policy, flags, nice, priority, runtime, deadline, period, util_min, util_max };
    // SAFETY: the kernel reads `size` bytes of the structure, which lives until the call returns; 0 is the caller.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(&attr), 0) };
    if result == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// The class of I/O priority; the numbers are the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoClass {
    /// Before everything else.
    RealTime = 1,
    /// By level.
    BestEffort = 2,
    /// When nobody else wants the disk.
    Idle = 3,
}

/// Sets class and level (0, the first, to 7) of the calling process's I/O.
///
/// # Errors
/// Those of ioprio_set(2): EPERM without CAP_SYS_NICE for real time, EINVAL for another level.
pub fn set_io_priority(class: IoClass, level: u8) -> Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IOPRIO_CLASS_SHIFT: libc::c_int = 13;
    let value = (class as libc::c_int) << IOPRIO_CLASS_SHIFT | libc::c_int::from(level);
    // SAFETY: ioprio_set takes numbers only; 0 is the caller.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) };
    if result == -1 { Err(std::io::Error::last_os_error()).context(|| "set the I/O priority") } else { Ok(()) }
}

/// Sets the execution domain of the calling process and of what it executes: `PER_*` and flags.
///
/// # Errors
/// Those of personality(2).
pub fn set_personality(persona: u32) -> Result<()> {
    // SAFETY: personality takes a number only.
    let result = unsafe { libc::personality(persona.into()) };
    if result == -1 { Err(std::io::Error::last_os_error()).context(|| "set the personality") } else { Ok(()) }
}
