//! What cannot be intercepted, and what a program sees then.

use std::fs;

use serde_json::{Value, json};

use crate::harness::port::free_port;
use crate::harness::{World, eventually};
use crate::program::{order, site};

fn change_spec(order: &Value, change: impl FnOnce(&mut Value)) {
    let path = order["definition"]["source"]["bundle"].as_str().unwrap().to_owned() + "/config.json";
    let mut spec: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut spec);
    fs::write(path, spec.to_string()).unwrap();
}

#[test]
fn a_container_whose_own_filter_asks_somebody_is_refused() {
    let world = World::new("asks");
    let listen = format!("tcp://127.0.0.1:{}", free_port("127.0.0.1"));
    let order = order(&world, "a", &["/usr/bin/python3", "-c", ""], &[&listen]);
    change_spec(&order, |spec| {
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/nobody",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
    });
    let (kept, reply) = world.keep(&order, &[]);
    assert_eq!(reply["error"]["kind"], "Unsupported", "{reply}");
    kept.gone();
}

#[test]
fn io_uring_is_not_there_and_everything_else_is() {
    let world = World::new("rings");
    let port = free_port("127.0.0.1");
    // The number is that of every processor (since 5.1).
    let script = format!(
        "import ctypes, errno, socket, time\n\
         libc = ctypes.CDLL(None, use_errno=True)\n\
         assert libc.syscall(425, 8, 0) == -1 and ctypes.get_errno() == errno.ENOSYS, ctypes.get_errno()\n\
         free = socket.create_server(('127.0.0.1', 0))\n\
         outgoing = socket.create_connection(free.getsockname(), source_address=('127.0.0.1', 0))\n\
         link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\n\
         link.bind((0, 0))\n\
         server = socket.create_server(('127.0.0.1', {port}))\n\
         while True: server.accept()[0].close()\n"
    );
    let listen = format!("tcp://127.0.0.1:{port}");
    let kept = world.keep_running(&order(&world, "a", &["/usr/bin/python3", "-c", &script], &[&listen]));
    assert_eq!(kept.await_phase("ready")["notes"], json!([]));
    kept.finish();
}

#[test]
fn without_its_keeper_an_instance_serves_on_and_its_next_bind_fails() {
    let world = World::new("alone");
    let port = free_port("127.0.0.1");
    let script = "
import errno, os, socket, sys, time
server = socket.create_server(('127.0.0.1', int(sys.argv[1])))
while not os.path.exists('/srv/go'): time.sleep(0.01)
try: word = str(socket.create_server(('127.0.0.1', 0)))
except OSError as error: word = errno.errorcode[error.errno]
connection = server.accept()[0]
connection.sendall(word.encode())
connection.close()
time.sleep(1000)
";
    let listen = format!("tcp://127.0.0.1:{port}");
    let mut order = order(&world, "a", &["/usr/bin/python3", "-c", script, &port.to_string()], &[&listen]);
    order["definition"]["ready"] = json!("none");
    let mut kept = world.keep_running(&order);
    kept.await_phase("ready");
    kept.child.kill().unwrap();
    kept.child.wait().unwrap();
    fs::write(site(&world, "a").join("go"), "").unwrap();
    let mut word = String::new();
    eventually("it answers", || {
        let connection = std::net::TcpStream::connect(("127.0.0.1", port));
        connection.is_ok_and(|mut connection| std::io::Read::read_to_string(&mut connection, &mut word).is_ok())
    });
    assert_eq!(word, "ENOSYS");
    let findings: Value = serde_json::from_str(world.regen(&["doctor", "--json"]).stdout()).unwrap();
    let subject = json!(format!("keeper {}", kept.instance));
    let found = findings.as_array().unwrap().iter().find(|finding| finding["subject"] == subject).unwrap();
    assert_eq!((&found["status"], &found["mend"]), (&json!("warn"), &json!("regen service restart web@1.0.0")));
    assert!(found["text"].as_str().unwrap().contains("its next bind fails"), "{found}");
    world.delete(&kept.instance);
    regen::ops::keep::clear(&world.root(), &kept.instance.parse().unwrap()).unwrap();
}
