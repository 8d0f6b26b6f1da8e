//! Unmodified programs, as they are installed here or built: in containers that share the host's programs and libraries.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::World;

/// Whose network a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The host's.
    Host,
    /// One of its own.
    Own,
}

/// An order for an instance that runs these words, which know nothing of services.
pub fn order(world: &World, name: &str, words: &[&str], listen: &[&str]) -> Value {
    order_in(world, name, words, listen, Network::Host)
}

/// The same in a network of one's choice.
pub fn order_in(world: &World, name: &str, words: &[&str], listen: &[&str], network: Network) -> Value {
    let mut order = world.order(name, "");
    let bundle = world.python("", |spec| {
        spec["process"]["args"] = json!(words);
        spec["process"]["cwd"] = json!("/srv");
        if network == Network::Host {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "network");
        }
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/srv", "source": site(world, name), "type": "bind", "options": ["bind"]}));
    });
    let listen: Vec<_> = listen.iter().map(|address| json!({"name": "web", "address": address})).collect();
    order["definition"]["source"] = json!({"bundle": bundle.text()});
    order["definition"]["listen"] = json!(listen);
    order["definition"]["handover"] = json!("intercept");
    order["listen"] = json!(listen);
    order
}

/// A directory of an instance: what it serves, its configuration.
pub fn site(world: &World, name: &str) -> PathBuf {
    let directory = world.base().join("sites").join(name);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("body"), body(name)).unwrap();
    directory
}

/// What an instance answers.
pub fn body(name: &str) -> String {
    format!("this is {name}\n")
}

/// Builds a program without libraries.
pub fn build(world: &World, name: &str, source: &str) -> PathBuf {
    let (file, program) = (world.base().join(name), world.rootfs().join(name).with_extension(""));
    std::fs::write(&file, source).unwrap();
    let mut command = match Path::new(name).extension().unwrap().to_str().unwrap() {
        "c" => Command::new("gcc"),
        _ => {
            let mut go = Command::new("go");
            go.arg("build").env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=mod").env("GO111MODULE", "off");
            go.env("GOCACHE", std::env::temp_dir().join("regen-test-go-cache"));
            go
        }
    };
    if name.ends_with(".c") {
        command.args(["-static", "-O1"]);
    }
    let output = command.arg("-o").arg(&program).arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

/// nginx with two workers.
pub fn nginx(world: &World, name: &str, listen: &[String], options: &str) -> Vec<String> {
    let listen: String = listen.iter().map(|place| format!("listen {place} {options};")).collect();
    let configuration = format!(
        "daemon off; worker_processes 2; pid /tmp/nginx-{name}.pid; error_log stderr; user root root;\n\
         events {{ worker_connections 512; }}\n\
         http {{\n\
         \x20 access_log off; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f;\n\
         \x20 uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s; lingering_close always;\n\
         \x20 server {{ {listen} root /srv; }}\n\
         }}\n"
    );
    std::fs::write(world.rootfs().join("etc/group"), "root:x:0:\n").unwrap();
    std::fs::write(site(world, name).join("nginx.conf"), configuration).unwrap();
    words(&["/usr/sbin/nginx", "-e", "stderr", "-c", "/srv/nginx.conf"])
}

/// haproxy with a master, and a worker with two threads, which answers by itself.
pub fn haproxy(world: &World, name: &str, bind: &[String]) -> Vec<String> {
    let bind: String = bind.iter().map(|place| format!(" bind {place}\n")).collect();
    let configuration = format!(
        "global\n nbthread 2\n maxconn 200\n\
         defaults\n mode http\n timeout client 10s\n timeout server 10s\n timeout connect 10s\n\
         frontend web\n{bind} http-request return status 200 content-type text/plain lf-string \"this is {name}\\n\"\n"
    );
    std::fs::write(site(world, name).join("haproxy.cfg"), configuration).unwrap();
    words(&["/usr/sbin/haproxy", "-W", "-db", "-f", "/srv/haproxy.cfg"])
}

pub fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
