//! Containers of podman that are clones of a template.

use crate::harness::template::Kept;
use crate::harness::{World, eventually};
use crate::podman::Podman;

/// Says whether `ssl` was there before anybody asked for it: only in a clone.
const LOADED: &str = "import sys; print('ssl' in sys.modules)";

fn keep(world: &World) -> (Kept, [String; 2]) {
    let order = world.python_template("py", "ssl");
    let annotation = format!("run.regen.template={}", order.definition.name);
    (world.keep_template(&order), [annotation, "run.regen.template.required=true".into()])
}

/// The options of a container with the template's base, which has to be a clone.
fn options<'a>(annotations: &'a [String; 2], more: &[&'a str]) -> Vec<&'a str> {
    let volumes = ["/usr:/usr:ro", "/usr/lib:/lib:ro", "/usr/lib64:/lib64:ro"];
    let volumes = volumes.iter().flat_map(|volume| ["--volume", volume]);
    let annotations = annotations.iter().flat_map(|annotation| ["--annotation", annotation.as_str()]);
    volumes.chain(annotations).chain(more.iter().copied()).collect()
}

#[test]
fn a_container_of_podman_is_a_clone() {
    let world = World::new("pw");
    let (kept, annotations) = keep(&world);
    let podman = Podman::new(&world);
    let run = |more: &[&str], script: &str| {
        podman.run(&options(&annotations, &[&["--rm"], more].concat()), &["/usr/bin/python3", "-c", script])
    };
    assert_eq!(run(&[], LOADED).success().stdout(), "True\n");
    run(&[], "import sys; sys.exit(7)").code(7);
    run(&[], "import os; os.kill(os.getpid(), 9)").code(137);
    let who = "import os; print(os.getuid(), os.getgid(), os.environ['A'], os.getcwd(), os.uname()[1])";
    let output = run(&["--user", "1000:7", "--env", "A=1", "--workdir", "/tmp", "--hostname", "other"], who);
    assert_eq!(output.success().stdout(), "1000 7 1 /tmp other\n");
    kept.finish();
}

#[test]
fn a_clone_of_podmans_is_entered_stopped_and_read() {
    let world = World::new("pws");
    let (kept, annotations) = keep(&world);
    let podman = Podman::new(&world);
    let script = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n\
        print('ssl' in sys.modules, 'up', flush=True)\nwhile True: time.sleep(0.01)";
    let name = world.id("box");
    podman.run(&options(&annotations, &["--detach", "--name", &name]), &["/usr/bin/python3", "-c", script]).success();
    eventually("it is up", || podman.call(&["logs", &name]).stdout().contains("True up\n"));
    podman.call(&["exec", &name, "true"]).success();
    podman.call(&["stop", "--time", "30", &name]).success();
    assert_eq!(podman.inspect(&name, "{{.State.ExitCode}}"), "9");
    podman.call(&["start", &name]).success();
    eventually("it is up again", || podman.call(&["logs", &name]).stdout().matches("True up\n").count() == 2);
    podman.call(&["kill", &name]).success();
    assert_eq!(podman.call(&["wait", &name]).success().stdout(), "137\n");
    podman.call(&["rm", &name]).success();
    let arguments = podman.run_arguments(&options(&annotations, &["--rm", "-it"]), &["/usr/bin/python3", "-c"]);
    let script = "import os; print(os.ttyname(0), open('/dev/tty').isatty())";
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain([script]).collect();
    let (text, status) = podman.at_terminal(&arguments);
    assert_eq!((text.trim(), status), ("/dev/pts/0 True", 0));
    kept.finish();
}

#[test]
fn podman_tells_its_user_why_a_container_is_no_clone() {
    let world = World::new("pwc");
    let (kept, annotations) = keep(&world);
    let podman = Podman::new(&world);
    let plain = ["--rm", "--annotation", &annotations[0]];
    assert_eq!(podman.run(&plain, &["echo", "cold"]).success().stdout(), "cold\n");
    let strict = [&plain[..], &["--annotation", &annotations[1]]].concat();
    let refused = podman.run(&strict, &["echo", "cold"]);
    assert!(refused.stderr().contains("it has another base"), "{refused:?}");
    assert_ne!(refused.code, 0);
    kept.finish();
}
