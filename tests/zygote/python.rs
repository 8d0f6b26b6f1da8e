//! The stock interpreter as a template, with ten lines of a zygote.

use std::io::Read;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::stage::{Stage, alone, fork, furnish, hear};

/// Loads what a service loads, with a thread and a child on the way, and serves forks.
pub const ZYGOTE: &str = r#"
import json, os, random, secrets, socket, sys, threading, subprocess
subprocess.run(["/bin/sh", "-c", "echo a | cat | grep -q a"], check=True)
idle = threading.Event()
threading.Thread(target=idle.wait, daemon=True).start()
s = socket.socket(fileno=3)
s.send(b"ready 1 python " + sys.version.split()[0].encode())
while m := s.recv(4096):
    p = os.fork()
    if not p:
        child = subprocess.run(["/bin/echo", "child"], capture_output=True, text=True).stdout.strip()
        t = threading.Thread(target=lambda: print("thread: runs"))
        t.start(); t.join()
        print(f"pid: {os.getpid()}\nchild: {child}\nuid: {os.getuid()}\nrandom: {random.random()}\nhost: {socket.gethostname()}")
        print(f"job: {open('/proc/self/fd/3').read()}", flush=True)
        os._exit(11)
    s.send(b"forked %s %d" % (m.split()[1], p))
"#;

/// The interpreter of this machine, with its libraries.
pub fn with_python(stage: &Stage) -> impl Fn(&mut Value) {
    let home = ask_python("sys.base_prefix");
    let mounts: Vec<Value> = ["/usr", "/lib", "/lib64", "/etc", &home]
        .into_iter()
        .filter(|path| Path::new(path).exists())
        .inspect(|path| std::fs::create_dir_all(stage.world.rootfs().join(&path[1..])).unwrap())
        .map(|path| json!({"destination": path, "source": path, "type": "bind", "options": ["rbind", "ro"]}))
        .collect();
    move |spec| spec["mounts"].as_array_mut().unwrap().extend(mounts.iter().cloned())
}

/// Where it is.
pub fn interpreter() -> String {
    ask_python("sys.executable")
}

fn ask_python(what: &str) -> String {
    let found = Command::new("/usr/bin/python3").args(["-c", &format!("import sys; print({what})")]).output();
    String::from_utf8(found.unwrap().stdout).unwrap().trim().to_owned()
}

#[test]
fn the_stock_interpreter_is_a_template() {
    alone("python::the_stock_interpreter_is_a_template", || {
        let stage = Stage::new("zygote-python");
        let change = with_python(&stage);
        let (mut held, template) = stage.template(&[&interpreter(), "-c", ZYGOTE], &change);
        let mut seen = Vec::new();
        for name in ["a", "b"] {
            let room = stage.room(name, |spec| {
                change(spec);
                spec["hostname"] = name.into();
                spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            });
            let mut guest = room.prepare(&mut held).unwrap();
            let mut reader = furnish(&mut held, &mut guest).unwrap();
            fork(&mut held, guest).unwrap();
            assert!(hear(&mut held).starts_with("forked 1 "));
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            let fields = crate::stage::fields(&text);
            assert_eq!((&fields["child"][..], &fields["thread"][..], &fields["uid"][..]), ("child", "runs", "1000"));
            assert_eq!((&fields["host"][..], &fields["job"][..]), (name, "job"));
            assert_eq!(room.status(), 11);
            seen.push(fields["random"].clone());
            stage.world.delete(&room.id);
        }
        assert_ne!(seen[0], seen[1], "each copy draws numbers of its own");
        stage.close(held, template);
    });
}
