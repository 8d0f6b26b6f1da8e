//! The last steps before a program, each seen from the program itself: this test executes itself again, and the child
//! becomes a program of the host, whose view of itself is compared with what was asked for.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::{env, fs, process};

use nix::sys::signal::SigSet;
use oci_spec::runtime::{Linux, Process};
use regen::program::{Given, Kernel, Role, UserNamespace, plan};
use serde_json::{Value, json};

const VARIABLE: &str = "REGEN_OCI_TEST_PROGRAM";
const MARK: &str = "@@@";

/// What the child is told.
fn request(process: Value, linux: Value) -> Value {
    let mut whole = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/usr/bin:/bin"]});
    whole.as_object_mut().unwrap().extend(process.as_object().unwrap().clone());
    json!({"process": whole, "linux": linux, "role": "init", "namespace": "own"})
}

/// A command that executes this test again, as the child.
fn child_of(program: &str, arguments: &[&str], request: &Value) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .args(["a_child_becomes_its_program", "--exact", "--nocapture"])
        .env(VARIABLE, request.to_string())
        .env_remove("LISTEN_FDS")
        .stdin(Stdio::null());
    command
}

fn child(request: &Value) -> Command {
    child_of(env::current_exe().unwrap().to_str().unwrap(), &[], request)
}

/// What the program wrote, or the error instead of it.
fn result_of(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let (_, result) = text.split_once(MARK).unwrap_or_else(|| panic!("no result: {text}\n{errors}"));
    result.trim().to_owned()
}

/// Runs a line of shell as the process, and returns what it wrote.
fn run(line: &str, process: Value, linux: Value) -> String {
    result_of(&child(&shell(line, process, linux)).output().unwrap())
}

fn shell(line: &str, mut process: Value, linux: Value) -> Value {
    process["args"] = json!(["/bin/sh", "-c", format!("echo {MARK}; {line}")]);
    request(process, linux)
}

/// A line of /proc/self/status of the program.
fn status(field: &str, process: Value, linux: Value) -> String {
    let text = run("exec cat /proc/self/status", process, linux);
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {text}")).trim().to_owned()
}

/// What a child has to say before it is the program.
fn say(text: &str) {
    let mut output = std::io::stdout();
    writeln!(output, "{MARK}{text}").and_then(|()| output.flush()).unwrap();
}

fn become_program(request: &Value) -> regen::error::Error {
    let process: Process = serde_json::from_value(request["process"].clone()).unwrap();
    let container: Option<Process> = serde_json::from_value(request["container"].clone()).unwrap();
    let linux: Option<Linux> = serde_json::from_value(request["linux"].clone()).unwrap();
    let namespace = if request["namespace"] == "own" { UserNamespace::Own } else { UserNamespace::Other };
    let role = container.as_ref().map_or(Role::Init, |container| Role::Exec { container });
    // The test harness runs tests in a thread, which is what becomes the program.
    let me = rustix::thread::gettid().as_raw_nonzero().get();
    let go = || {
        let kernel = Kernel::observe(&process, namespace)?;
        let mut plan = plan(&process, linux.as_ref(), role, &kernel, Given::of_environment())?;
        plan.pin(me)?;
        plan.limit(me)?;
        let listener = plan.prepare()?;
        if let Some(listener) = listener {
            say("listener");
            drop(listener);
        }
        Ok::<_, regen::error::Error>(plan)
    };
    match go() {
        Ok(plan) => plan.execute(&SigSet::empty()),
        Err(error) => error,
    }
}

#[test]
fn a_child_becomes_its_program() {
    if let Ok(text) = env::var(VARIABLE) {
        let error = become_program(&serde_json::from_str(&text).unwrap());
        say(&format!("{:?} {error}", error.kind()));
        process::exit(1);
    }
    assert_eq!(run("echo $0 $#", json!({}), json!({})), "/bin/sh 0");
}

#[test]
fn user_groups_and_mask_are_those_asked_for() {
    let user = json!({"user": {"uid": 1234, "gid": 2345, "additionalGids": [7, 8], "umask": 0o027}});
    assert_eq!(status("Uid", user.clone(), json!({})), "1234\t1234\t1234\t1234");
    assert_eq!(status("Gid", user.clone(), json!({})), "2345\t2345\t2345\t2345");
    assert_eq!(status("Groups", user.clone(), json!({})), "7 8");
    assert_eq!(status("Umask", user, json!({})), "0027");
    assert_eq!(status("Groups", json!({}), json!({})), "", "groups of the caller were kept");
    assert_eq!(status("Umask", json!({}), json!({})), "0022");
}

#[test]
fn standard_streams_belong_to_the_user_except_dev_null() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let null = fs::metadata("/dev/null").unwrap().uid();
    let user = json!({"user": {"uid": 1234, "gid": 2345}});
    let request = shell("echo again > /proc/self/fd/2", user, json!({}));
    child(&request).stderr(file.reopen().unwrap()).output().unwrap();
    assert_eq!((file.as_file().metadata().unwrap().uid(), file.as_file().metadata().unwrap().gid()), (1234, 0));
    let mut text = String::new();
    file.reopen().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("again"), "the user could not open its standard error again: {text:?}");
    assert_eq!(fs::metadata("/dev/null").unwrap().uid(), null);
}

#[test]
fn five_capability_sets_arrive_exactly() {
    let sets = json!({
        "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_NET_RAW", "CAP_SETUID"],
        "permitted": ["CAP_KILL", "CAP_CHOWN", "CAP_NET_RAW"],
        "effective": ["CAP_KILL"],
        "inheritable": ["CAP_KILL", "CAP_CHOWN"],
        "ambient": ["CAP_KILL"],
    });
    let bits = |numbers: &[u32]| format!("{:016x}", numbers.iter().fold(0_u64, |all, number| all | 1 << number));
    let of_user = |field| {
        status(
            field,
            json!({"user": {"uid": 1234, "gid": 0}, "capabilities": sets, "noNewPrivileges": true}),
            json!({}),
        )
    };
    // execve(2) gives an ordinary user what is ambient.
    assert_eq!(of_user("CapBnd"), bits(&[5, 0, 13, 7]));
    assert_eq!(of_user("CapInh"), bits(&[5, 0]));
    assert_eq!(of_user("CapPrm"), bits(&[5]));
    assert_eq!(of_user("CapEff"), bits(&[5]));
    assert_eq!(of_user("CapAmb"), bits(&[5]));
    let of_root = |field| status(field, json!({"capabilities": sets}), json!({}));
    // And root everything that is in the bounding set.
    assert_eq!(of_root("CapPrm"), bits(&[5, 0, 13, 7]));
    assert_eq!(status("CapBnd", json!({}), json!({})), bits(&[]), "no sets mean no capabilities");
}

#[test]
fn a_capability_that_regen_lacks_is_left_out() {
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap();
    let own = u64::from_str_radix(own.trim(), 16).unwrap();
    let all: Vec<String> = caps::all().into_iter().map(|capability| capability.to_string()).collect();
    let sets = json!({"bounding": all, "permitted": all, "effective": all});
    assert_eq!(status("CapBnd", json!({"capabilities": sets}), json!({})), format!("{own:016x}"));
}

#[test]
fn privileges_cannot_be_gained_only_where_that_is_asked_for() {
    assert_eq!(status("NoNewPrivs", json!({"noNewPrivileges": true}), json!({})), "1");
    assert_eq!(status("NoNewPrivs", json!({"noNewPrivileges": false}), json!({})), "0");
}

#[test]
fn limits_are_lowered_and_one_that_cannot_be_raised_is_named() {
    let limits = json!({"rlimits": [
        {"type": "RLIMIT_NOFILE", "soft": 200, "hard": 300},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_RTTIME", "soft": 1_000_000, "hard": 2_000_000},
    ], "oomScoreAdj": 123});
    let text = run("cat /proc/self/limits /proc/self/oom_score_adj", limits, json!({}));
    let line = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("Max open files"), ["200", "300"]);
    assert_eq!(line("Max core file size"), ["0", "0"]);
    assert_eq!(line("Max realtime timeout"), ["1000000", "2000000"]);
    assert_eq!(text.lines().last(), Some("123"));
    // More files than the kernel ever gives out are refused to everybody.
    let raised = json!({"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1_u64 << 40}]});
    let error = run("true", raised, json!({}));
    assert!(error.contains("set rlimit RLIMIT_NOFILE") && error.contains("operation not permitted"), "{error}");
}

#[test]
fn scheduler_io_priority_and_personality_reach_the_program() {
    let process = json!({
        "scheduler": {"policy": "SCHED_BATCH", "nice": 5, "flags": ["SCHED_RESET_ON_FORK"]},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
    });
    let linux = json!({"personality": {"domain": "LINUX32", "flags": ["ADDR_NO_RANDOMIZE"]}});
    // exec: with SCHED_RESET_ON_FORK a child would have the default again.
    let text = run("cat /proc/$$/personality; uname -m; ionice -p $$; exec chrt -p $$", process, linux);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "00040008");
    assert_ne!(lines[1], "x86_64");
    assert_eq!(lines[2], "best-effort: prio 6");
    assert!(lines[3].ends_with("SCHED_BATCH|SCHED_RESET_ON_FORK"), "{text}");
    let idle = json!({"scheduler": {"policy": "SCHED_IDLE"}, "ioPriority": {"class": "IOPRIO_CLASS_IDLE"}});
    assert!(run("chrt -p $$; ionice -p $$", idle, json!({})).contains("SCHED_IDLE"));
    let error = run("true", json!({"scheduler": {"policy": "SCHED_ISO"}}), json!({}));
    assert!(error.contains("set the scheduler: invalid argument"), "{error}");
}

#[test]
fn an_exec_takes_over_what_it_leaves_open_and_is_bound_to_its_cpus() {
    let with = |affinity: Value| {
        let line = "grep Cpus_allowed_list /proc/self/status; ionice -p $$; exec chrt -p $$";
        let own = json!({"execCPUAffinity": affinity, "ioPriority": {"class": "IOPRIO_CLASS_IDLE"}});
        let mut request = shell(line, own, json!({}));
        request["container"] = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/",
            "scheduler": {"policy": "SCHED_BATCH"}, "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 2}});
        result_of(&child(&request).output().unwrap())
    };
    for affinity in [json!({"initial": "0"}), json!({"final": "0"})] {
        let text = with(affinity);
        assert!(text.starts_with("Cpus_allowed_list:\t0\n"), "{text}");
        assert!(text.contains("\nidle\n") && text.contains("SCHED_BATCH"), "{text}");
    }
}

#[test]
fn a_working_directory_that_cannot_be_entered_is_told_in_runcs_words() {
    let place = tempfile::tempdir().unwrap();
    let (missing, file) = (place.path().join("missing"), place.path().join("file"));
    fs::write(&file, "").unwrap();
    for (directory, cause) in [(&missing, "no such file or directory"), (&file, "not a directory")] {
        let shown = directory.display();
        let wanted = format!("chdir to cwd (\"{shown}\") set in config.json failed: {cause}");
        let text = run("pwd", json!({"cwd": directory}), json!({}));
        assert!(text.ends_with(&wanted), "{text}");
    }
    let inside = place.path().canonicalize().unwrap();
    assert_eq!(run("pwd", json!({"cwd": inside}), json!({})), inside.to_str().unwrap());
}

#[test]
fn a_directory_that_only_the_user_may_enter_is_entered_as_the_user() {
    // Root of a user namespace has no rights over a directory of somebody who is not mapped; here the other way
    // round: without CAP_DAC_OVERRIDE root cannot enter it either.
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let directory = place.path().join("mine");
    fs::create_dir(&directory).unwrap();
    std::os::unix::fs::chown(&directory, Some(1234), Some(1234)).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
    let request = |uid: u32| shell("pwd", json!({"cwd": directory, "user": {"uid": uid, "gid": uid}}), json!({}));
    let exe = env::current_exe().unwrap();
    let without = |request: &Value| {
        let drop = ["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", "--", exe.to_str().unwrap()];
        result_of(&child_of("setpriv", &drop, request).output().unwrap())
    };
    assert_eq!(without(&request(1234)), directory.to_str().unwrap());
    let refused = without(&request(4321));
    assert!(refused.contains("chdir to cwd") && refused.ends_with("permission denied"), "{refused}");
}

#[test]
fn a_working_directory_outside_of_the_root_is_refused() {
    // A descriptor of a directory of the host, and a root that does not hold it: what CVE-2024-21626 is about.
    let root = tempfile::tempdir().unwrap();
    let outside = fs::File::open("/usr").unwrap();
    let exe = env::current_exe().unwrap();
    let line = format!(
        "mount --rbind / {root} && exec 9</usr && cd {root} && pivot_root . . && umount -l . && cd / && exec {exe} \"$@\"",
        root = root.path().display(),
        exe = exe.display(),
    );
    let mut request = shell("pwd", json!({"cwd": "/proc/self/fd/9"}), json!({}));
    request["container"] = request["process"].clone();
    let text = result_of(&child_of("unshare", &["-m", "sh", "-c", &line, "sh"], &request).output().unwrap());
    drop(outside);
    assert!(text.contains("outside of container mount namespace root"), "{text}");
}

#[test]
fn signals_are_as_a_fresh_program_expects_them() {
    let set = |field| u64::from_str_radix(&status(field, json!({}), json!({})), 16).unwrap();
    assert_eq!(set("SigBlk"), 0);
    // The Rust runtime of the child ignores it.
    assert_eq!(set("SigIgn") & 1 << (libc::SIGPIPE - 1), 0);
}

#[test]
fn names_for_sockets_are_handed_on_with_the_programs_own_pid() {
    let request = shell("echo $LISTEN_FDS $LISTEN_FDNAMES $$ $LISTEN_PID", json!({}), json!({}));
    let output = child(&request).env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "a:b").env("LISTEN_PID", "1").output();
    let text = result_of(&output.unwrap());
    let words: Vec<_> = text.split(' ').collect();
    assert_eq!(words[..2], ["2", "a:b"]);
    assert_eq!(words[2], words[3]);
}

#[test]
fn a_missing_program_and_one_that_cannot_run_are_told_apart() {
    let error = |name: &str| result_of(&child(&request(json!({"args": [name]}), json!({}))).output().unwrap());
    assert_eq!(
        error("nobody-has-this"),
        "CommandNotFound exec: \"nobody-has-this\": executable file not found in $PATH"
    );
    assert_eq!(error("/nobody/has"), "CommandNotFound exec: \"/nobody/has\": no such file or directory");
    assert_eq!(error("/etc/passwd"), "CommandNotExecutable exec: \"/etc/passwd\": permission denied");
    let script = tempfile::NamedTempFile::new().unwrap();
    fs::write(script.path(), "#!/nobody/has/this\n").unwrap();
    fs::set_permissions(script.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let script = script.into_temp_path();
    assert!(error(script.to_str().unwrap()).starts_with("CommandNotFound"), "a script without its interpreter");
}

#[test]
fn labels_that_this_kernel_cannot_give_are_refused() {
    if !fs::exists("/sys/module/apparmor/parameters/enabled").unwrap() {
        let error = run("true", json!({"apparmorProfile": "docker-default"}), json!({}));
        assert!(error.contains("apparmor is disabled or not supported"), "{error}");
        return;
    }
    // Where there is AppArmor, a profile that it does not know.
    let error = run("true", json!({"apparmorProfile": "regen-nobody-has-this"}), json!({}));
    assert!(error.contains("apply apparmor profile 'regen-nobody-has-this'"), "{error}");
}

#[test]
fn in_a_user_namespace_that_denies_setgroups_the_groups_stay() {
    let exe = env::current_exe().unwrap();
    let mut request = shell("id -u; cat /proc/self/setgroups", json!({"user": {"uid": 0, "gid": 0}}), json!({}));
    request["namespace"] = json!("other");
    let arguments = ["--user", "--map-root-user", "--", exe.to_str().unwrap()];
    let text = result_of(&child_of("unshare", &arguments, &request).uid(65534).gid(65534).output().unwrap());
    assert_eq!(text, "0\ndeny");
    request["process"]["user"]["uid"] = json!(5);
    let text = result_of(&child_of("unshare", &arguments, &request).output().unwrap());
    assert!(text.contains("set uid 5: it is not mapped in the user namespace"), "{text}");
}

/// A filter with these rules, which lets everything else through.
fn filter(rules: Value) -> Value {
    json!({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": rules}})
}

/// Calls a system call by number from Perl, and gives its error number, 0 if it succeeded.
fn call(arguments: &str, process: Value, linux: Value) -> String {
    run(&format!("exec perl -e 'print syscall({arguments}) < 0 ? $! + 0 : 0'"), process, linux)
}

#[test]
fn a_filter_is_loaded_with_and_without_the_right_to_gain_privileges() {
    let linux = filter(json!([{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77}]));
    for process in [json!({"noNewPrivileges": true}), json!({}), json!({"user": {"uid": 1234, "gid": 1234}})] {
        assert_eq!(status("Seccomp", process.clone(), linux.clone()), "2", "{process}");
        assert_eq!(call("83, 0, 0", process.clone(), linux.clone()), "77");
        assert_eq!(status("CapPrm", process.clone(), linux.clone()), "0".repeat(16), "what loading took was kept");
        assert_eq!(status("CapEff", process, linux.clone()), "0".repeat(16));
    }
}

#[test]
fn conditions_on_arguments_mean_what_they_mean_for_runc() {
    // getpriority(which, who): 140. `which` is compared; an allowed call answers at least 1 for PRIO_PROCESS.
    let denied = |conditions: Value, which: u64| {
        let linux =
            filter(json!([{"names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77, "args": conditions}]));
        call(&format!("140, {which}, 0"), json!({}), linux) == "77"
    };
    let one = |op: &str, value: u64, two: u64| json!([{"index": 0, "value": value, "valueTwo": two, "op": op}]);
    for (op, value, two, below, equal, above) in [
        ("SCMP_CMP_EQ", 1, 0, false, true, false),
        ("SCMP_CMP_NE", 1, 0, true, false, true),
        ("SCMP_CMP_LT", 1, 0, true, false, false),
        ("SCMP_CMP_LE", 1, 0, true, true, false),
        ("SCMP_CMP_GT", 1, 0, false, false, true),
        ("SCMP_CMP_GE", 1, 0, false, true, true),
        // The mask comes first: which & 2 == 0.
        ("SCMP_CMP_MASKED_EQ", 2, 0, true, true, false),
        ("SCMP_CMP_MASKED_EQ", 3, 1, false, true, false),
    ] {
        let seen = (0..3).map(|which| denied(one(op, value, two), which)).collect::<Vec<_>>();
        assert_eq!(seen, [below, equal, above], "{op} {value} {two}");
    }
    let on_one = json!([{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]);
    assert!(denied(on_one.clone(), 0) && denied(on_one.clone(), 2) && !denied(on_one, 1), "alternatives");
    let on_two = |who: u64| json!([{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": who, "op": "SCMP_CMP_EQ"}]);
    assert!(denied(on_two(0), 0) && !denied(on_two(5), 0), "both have to hold");
}

#[test]
fn each_action_does_what_it_says() {
    use std::os::unix::process::ExitStatusExt;
    let ends_with = |action: &str| {
        let linux = filter(json!([{"names": ["mkdir"], "action": action}]));
        let request = shell("exec perl -e 'syscall(83, 0, 0)'", json!({}), linux);
        child(&request).output().unwrap().status.signal()
    };
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        assert_eq!(ends_with(action), Some(libc::SIGSYS), "{action}");
    }
    assert_eq!(ends_with("SCMP_ACT_LOG"), None);
    let answer = |action: &str| call("83, 0, 0", json!({}), filter(json!([{"names": ["mkdir"], "action": action}])));
    assert_eq!(answer("SCMP_ACT_ERRNO"), libc::EPERM.to_string());
    assert_eq!(answer("SCMP_ACT_LOG"), libc::EFAULT.to_string());
    assert_eq!(answer("SCMP_ACT_TRACE"), libc::ENOSYS.to_string(), "nobody traces");
}

#[test]
fn a_listener_comes_back_and_its_end_is_seen_by_the_program() {
    let linux = filter(json!([{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]));
    for process in [json!({}), json!({"noNewPrivileges": true})] {
        // The child drops the listener; the kernel then answers ENOSYS.
        let text = call("83, 0, 0", process, linux.clone());
        assert_eq!(text, format!("listener\n{MARK}\n{}", libc::ENOSYS));
    }
}

#[test]
fn a_call_newer_than_a_strict_filter_is_unknown_and_not_forbidden() {
    let names: &[&str] = &[
        "execve",
        "brk",
        "mmap",
        "munmap",
        "mprotect",
        "openat",
        "read",
        "write",
        "close",
        "fstat",
        "newfstatat",
        "arch_prctl",
        "set_tid_address",
        "set_robust_list",
        "rseq",
        "prlimit64",
        "getrandom",
        "pread64",
        "lseek",
        "ioctl",
        "access",
        "exit_group",
        "rt_sigaction",
        "rt_sigprocmask",
        "getpid",
        "getuid",
        "geteuid",
        "getgid",
        "getegid",
        "fcntl",
        "readlink",
        "futex",
        "sysinfo",
        "statx",
        "dup2",
        "clone",
        "wait4",
        "getppid",
        "uname",
        "fadvise64",
    ];
    let strict = |errno: Option<i32>| {
        let mut linux = json!({"seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}]}});
        if let Some(errno) = errno {
            linux["seccomp"]["defaultErrnoRet"] = json!(errno);
        }
        linux
    };
    for process in [json!({}), json!({"noNewPrivileges": true}), json!({"user": {"uid": 1, "gid": 1}})] {
        // rseq, 334, is the highest here; 83 is mkdir, 450 set_mempolicy_home_node.
        assert_eq!(call("450, 0, 0, 0, 0", process.clone(), strict(None)), libc::ENOSYS.to_string());
        assert_eq!(call("83, 0, 0", process, strict(None)), libc::EPERM.to_string());
    }
    assert_eq!(call("83, 0, 0", json!({}), strict(Some(77))), "77");
}
