//! The rights of a process, as they were ordered and as the kernel tells of them.

use std::fs;

use serde_json::{Value, json};

use crate::harness::process_status;

/// What the kernel says of the rights of a process.
pub fn rights(pid: i32) -> Vec<(&'static str, String)> {
    let fields = ["Umask", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"];
    let more = ["Seccomp", "Seccomp_filters", "SigBlk", "TracerPid"];
    let status = fields.iter().chain(&more).map(|field| (*field, process_status(pid, field)));
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    status.chain([("limits", limits), ("oom", score)]).collect()
}

/// Somebody of no rights, with a filter.
pub fn confined(spec: &mut Value) {
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [7, 5], "umask": 0o27});
    let none: [&str; 0] = [];
    spec["process"]["capabilities"] =
        json!({"bounding": ["CAP_KILL"], "effective": none, "permitted": none, "inheritable": none});
    spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
    spec["process"]["oomScoreAdj"] = json!(300);
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]});
}
