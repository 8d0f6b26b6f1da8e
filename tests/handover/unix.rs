//! Servers on unix sockets: each has its own file in its container, and clients use the host's.

use std::path::PathBuf;

use crate::harness::World;
use crate::harness::load::Target;
use crate::program::{Network, haproxy, nginx, words};
use crate::tcp::restarts;

/// A path that is the same on the host and in the container, in a directory that the container has for itself.
fn path(world: &World) -> PathBuf {
    let path = world.base().join("sock");
    for root in [PathBuf::from("/"), world.rootfs()] {
        std::fs::create_dir_all(root.join(path.strip_prefix("/").unwrap())).unwrap();
    }
    path.join("web")
}

#[test]
fn nginx_on_a_path() {
    let world = World::new("un");
    let path = path(&world);
    let words = |name: &str| nginx(&world, name, &[format!("unix:{}", path.display())], "");
    let listen = format!("unix:{}", path.display());
    restarts(&world, &[&listen], Network::Host, &words, &[Target::Unix(path.clone())]);
    assert!(!path.exists());
}

#[test]
fn haproxy_which_binds_another_name_and_renames_it() {
    let world = World::new("uh");
    let path = path(&world);
    let words = |name: &str| haproxy(&world, name, &[format!("{} mode 600", path.display())]);
    let listen = format!("unix:{}", path.display());
    restarts(&world, &[&listen], Network::Own, &words, &[Target::Unix(path.clone())]);
}

/// It does not remove what an earlier one has left, and answers one at a time.
const SERVER: &str = "
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(1)
body = f'this is {sys.argv[2]}\\n'.encode()
while True:
    connection = listener.accept()[0]
    if connection.recv(9999):
        connection.sendall(b'HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n' % len(body) + body)
    connection.close()
";

#[test]
fn a_program_that_never_removes_its_file() {
    let world = World::new("up");
    let path = path(&world);
    let words = |name: &str| words(&["/usr/bin/python3", "-c", SERVER, path.to_str().unwrap(), name]);
    let listen = format!("unix:{}", path.display());
    restarts(&world, &[&listen], Network::Host, &words, &[Target::Unix(path.clone())]);
}
