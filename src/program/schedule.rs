//! Scheduler, I/O priority and personality of the process, from words to the kernel's numbers.

use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, Scheduler,
};

use crate::error::{Context, Error, Kind, Result};
use crate::sys::schedule::{Attributes, IoClass, set_io_priority, set_personality, set_scheduler};

/// How the process is scheduled; what is `None` stays as inherited.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Schedule {
    pub scheduler: Option<Attributes>,
    pub io: Option<(IoClass, u8)>,
    pub persona: Option<u32>,
}

/// `PER_LINUX32` of personality(2).
const PER_LINUX32: u32 = 0x0008;

/// Flags of personality(2) by name. The specification names none yet; these are the kernel's.
const PERSONA_FLAGS: &[(&str, u32)] = &[
    ("UNAME26", 0x002_0000),
    ("ADDR_NO_RANDOMIZE", 0x004_0000),
    ("FDPIC_FUNCPTRS", 0x008_0000),
    ("MMAP_PAGE_ZERO", 0x010_0000),
    ("ADDR_COMPAT_LAYOUT", 0x020_0000),
    ("READ_IMPLIES_EXEC", 0x040_0000),
    ("ADDR_LIMIT_32BIT", 0x080_0000),
    ("SHORT_INODE", 0x100_0000),
    ("WHOLE_SECONDS", 0x200_0000),
    ("STICKY_TIMEOUTS", 0x400_0000),
    ("ADDR_LIMIT_3GB", 0x800_0000),
];

/// Translates `process.scheduler`.
pub(super) fn plan_scheduler(scheduler: &Scheduler) -> Result<Attributes> {
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flag = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    };
    let priority = scheduler.priority().unwrap_or_default();
    let priority = u32::try_from(priority).map_err(|_| {
        Error::new(Kind::Invalid, "read process.scheduler.priority", format!("{priority} is below zero"))
    })?;
    Ok(Attributes {
        policy,
        flags: scheduler.flags().iter().flatten().map(flag).fold(0, |all, one| all | one),
        nice: scheduler.nice().unwrap_or_default(),
        priority,
        runtime: scheduler.runtime().unwrap_or_default(),
        deadline: scheduler.deadline().unwrap_or_default(),
        period: scheduler.period().unwrap_or_default(),
    })
}

/// Translates `process.ioPriority`.
pub(super) fn plan_io_priority(given: &LinuxIOPriority) -> Result<(IoClass, u8)> {
    let class = match given.class() {
        IOPriorityClass::IoprioClassRt => IoClass::RealTime,
        IOPriorityClass::IoprioClassBe => IoClass::BestEffort,
        IOPriorityClass::IoprioClassIdle => IoClass::Idle,
    };
    let level = u8::try_from(given.priority()).ok().filter(|level| *level <= 7).ok_or_else(|| {
        let cause = format!("{} is not between 0 and 7", given.priority());
        Error::new(Kind::Invalid, "read process.ioPriority.priority", cause)
    })?;
    Ok((class, level))
}

/// Translates `linux.personality`. An unknown flag is passed over with a warning, as runc does with all of them.
pub(super) fn plan_personality(given: &LinuxPersonality) -> u32 {
    let domain = match given.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
    };
    given.flags().iter().flatten().fold(domain, |persona, name| {
        match PERSONA_FLAGS.iter().find(|(known, _)| known == name) {
            Some((_, flag)) => persona | flag,
            None => {
                tracing::warn!(%name, "unknown personality flag is ignored");
                persona
            }
        }
    })
}

impl Schedule {
    /// Sets all of it for the calling process.
    pub(super) fn apply(&self) -> Result<()> {
        if let Some(attributes) = self.scheduler {
            set_scheduler(attributes).context(|| "set the scheduler")?;
        }
        if let Some((class, level)) = self.io {
            set_io_priority(class, level)?;
        }
        if let Some(persona) = self.persona {
            set_personality(persona)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(value: serde_json::Value) -> Result<Attributes> {
        plan_scheduler(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn policies_and_flags_have_the_kernels_numbers() {
        let flags = ["SCHED_RESET_ON_FORK", "SCHED_FLAG_RECLAIM", "SCHED_FLAG_UTIL_CLAMP_MAX"];
        let planned = scheduler(serde_json::json!({"policy": "SCHED_DEADLINE", "flags": flags, "runtime": 1,
            "deadline": 2, "period": 3}));
        let planned = planned.unwrap();
        assert_eq!((planned.policy, planned.flags), (6, 0x43));
        assert_eq!((planned.runtime, planned.deadline, planned.period), (1, 2, 3));
        assert!(scheduler(serde_json::json!({"policy": "SCHED_RR", "priority": -1})).is_err());
    }

    #[test]
    fn an_io_priority_outside_the_eight_levels_is_refused() {
        let io = |priority| {
            let value = serde_json::json!({"class": "IOPRIO_CLASS_BE", "priority": priority});
            plan_io_priority(&serde_json::from_value(value).unwrap())
        };
        assert_eq!(io(7).unwrap(), (IoClass::BestEffort, 7));
        assert!(io(8).is_err() && io(-1).is_err());
    }

    #[test]
    fn a_personality_is_a_domain_and_flags() {
        let value = serde_json::json!({"domain": "LINUX32", "flags": ["ADDR_NO_RANDOMIZE", "NOBODY_KNOWS"]});
        assert_eq!(plan_personality(&serde_json::from_value(value).unwrap()), 0x004_0008);
    }
}
