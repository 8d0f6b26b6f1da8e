//! Containers of `ctr` that are clones of a template.

use crate::daemon::Containerd;
use crate::harness::{World, eventually};

#[test]
fn a_container_of_ctr_is_a_clone() {
    let world = World::new("cw");
    let order = world.python_template("py", "ssl");
    let kept = world.keep_template(&order);
    let template = format!("run.regen.template={}", order.definition.name);
    let containerd = Containerd::new(&world);
    let mounts: Vec<String> = [("/usr", "/usr"), ("/usr/lib", "/lib"), ("/usr/lib64", "/lib64")]
        .iter()
        .map(|(from, to)| format!("type=bind,src={from},dst={to},options=rbind:ro"))
        .collect();
    let base: Vec<&str> = mounts.iter().flat_map(|mount| ["--mount", mount.as_str()]).collect();
    let clone = ["--annotation", &template, "--annotation", "run.regen.template.required=true"];
    let run = |options: &[&str], id: &str, script: &str| {
        let options = [&base[..], &clone, options].concat();
        containerd.run(&options, id, &["/usr/bin/python3", "-c", script])
    };
    let loaded = "import sys; print('ssl' in sys.modules); sys.exit(5)";
    assert_eq!(run(&["--rm"], "a", loaded).code(5).stdout(), "True\n");
    let service = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n\
        while True: time.sleep(0.01)";
    run(&["--detach"], "b", service).success();
    containerd.ctr(&["tasks", "exec", "--exec-id", "e", "b", "true"]).success();
    containerd.ctr(&["tasks", "pause", "b"]).success();
    containerd.ctr(&["tasks", "resume", "b"]).success();
    containerd.ctr(&["tasks", "kill", "b"]).success();
    eventually("the task ended", || containerd.ctr(&["tasks", "ls"]).stdout().contains("STOPPED"));
    let removed = containerd.ctr(&["tasks", "rm", "b"]);
    assert!(removed.success().stderr().contains("exit code 7"), "{removed:?}");
    containerd.ctr(&["containers", "rm", "b"]).success();
    let options = [&clone[..], &["--rm"]].concat();
    let refused = containerd.run(&options, "c", &["echo", "cold"]);
    assert!(refused.code(1).stderr().contains("it has another base"), "{refused:?}");
    let output = containerd.run(&["--annotation", &template, "--rm"], "d", &["echo", "cold"]);
    assert_eq!(output.success().stdout(), "cold\n");
    kept.finish();
}
