//! What filters of this build, library and kernel can say: the seccomp part of the features document.

use libseccomp::{ScmpSyscall, ScmpVersion};
use oci_spec::runtime::Arch;

use super::seccomp::scmp_arch;
use crate::sys::seccomp::{self as kernel, LOG, SPEC_ALLOW, TSYNC, WAIT_KILLABLE_RECV};

/// Words of the specification, each list sorted.
#[derive(Debug, Clone)]
pub struct FilterFeatures {
    /// Actions that a rule may have.
    pub actions: &'static [&'static str],
    /// Comparisons of arguments.
    pub operators: &'static [&'static str],
    /// Processors whose system calls the library knows.
    pub archs: Vec<&'static str>,
    /// Flags that are understood.
    pub known_flags: Vec<&'static str>,
    /// Those that this kernel takes.
    pub supported_flags: Vec<&'static str>,
    /// The version of libseccomp in use, such as `2.5.4`.
    pub library: Option<String>,
}

const ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

const OPERATORS: [&str; 7] =
    ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"];

const ARCHS: [(&str, Arch); 23] = [
    ("SCMP_ARCH_AARCH64", Arch::ScmpArchAarch64),
    ("SCMP_ARCH_ARM", Arch::ScmpArchArm),
    ("SCMP_ARCH_LOONGARCH64", Arch::ScmpArchLoongarch64),
    ("SCMP_ARCH_M68K", Arch::ScmpArchM68k),
    ("SCMP_ARCH_MIPS", Arch::ScmpArchMips),
    ("SCMP_ARCH_MIPS64", Arch::ScmpArchMips64),
    ("SCMP_ARCH_MIPS64N32", Arch::ScmpArchMips64n32),
    ("SCMP_ARCH_MIPSEL", Arch::ScmpArchMipsel),
    ("SCMP_ARCH_MIPSEL64", Arch::ScmpArchMipsel64),
    ("SCMP_ARCH_MIPSEL64N32", Arch::ScmpArchMipsel64n32),
    ("SCMP_ARCH_PARISC", Arch::ScmpArchParisc),
    ("SCMP_ARCH_PARISC64", Arch::ScmpArchParisc64),
    ("SCMP_ARCH_PPC", Arch::ScmpArchPpc),
    ("SCMP_ARCH_PPC64", Arch::ScmpArchPpc64),
    ("SCMP_ARCH_PPC64LE", Arch::ScmpArchPpc64le),
    ("SCMP_ARCH_RISCV64", Arch::ScmpArchRiscv64),
    ("SCMP_ARCH_S390", Arch::ScmpArchS390),
    ("SCMP_ARCH_S390X", Arch::ScmpArchS390x),
    ("SCMP_ARCH_SH", Arch::ScmpArchSh),
    ("SCMP_ARCH_SHEB", Arch::ScmpArchSheb),
    ("SCMP_ARCH_X32", Arch::ScmpArchX32),
    ("SCMP_ARCH_X86", Arch::ScmpArchX86),
    ("SCMP_ARCH_X86_64", Arch::ScmpArchX86_64),
];

const FLAGS: [(&str, u32); 4] = [
    ("SECCOMP_FILTER_FLAG_LOG", LOG),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", SPEC_ALLOW),
    ("SECCOMP_FILTER_FLAG_TSYNC", TSYNC),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", WAIT_KILLABLE_RECV),
];

/// Looks at the library and asks the kernel.
#[must_use]
pub fn filter_features() -> FilterFeatures {
    // Every processor that the library knows at all has this call.
    let is_known = |arch: Arch| ScmpSyscall::from_name_by_arch("read", scmp_arch(arch)).is_ok();
    FilterFeatures {
        actions: &ACTIONS,
        operators: &OPERATORS,
        archs: ARCHS.iter().filter(|(_, arch)| is_known(*arch)).map(|(name, _)| *name).collect(),
        known_flags: FLAGS.iter().map(|(name, _)| *name).collect(),
        supported_flags: FLAGS.iter().filter(|(_, flag)| kernel::takes_flag(*flag)).map(|(name, _)| *name).collect(),
        library: ScmpVersion::current().ok().map(|version| version.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator};

    use super::*;

    #[test]
    fn every_word_is_one_of_the_specifications() {
        fn is<T: serde::de::DeserializeOwned>(word: &&str) -> bool {
            serde_json::from_value::<T>((*word).into()).is_ok()
        }
        let features = filter_features();
        assert!(features.actions.iter().all(is::<LinuxSeccompAction>));
        assert!(features.operators.iter().all(is::<LinuxSeccompOperator>));
        assert!(features.known_flags.iter().all(is::<LinuxSeccompFilterFlag>));
        for (name, arch) in ARCHS {
            assert_eq!(serde_json::from_value::<Arch>(name.into()).unwrap(), arch);
        }
        assert!(features.archs.contains(&"SCMP_ARCH_X86_64"));
        assert!(features.archs.is_sorted() && features.supported_flags.contains(&"SECCOMP_FILTER_FLAG_LOG"));
    }
}
