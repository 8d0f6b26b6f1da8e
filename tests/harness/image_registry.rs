//! Debian's registry of images, on a port and in a directory of its own.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::eventually;
use super::port::free_port;

/// User and password that a guarded registry takes: `u:p`.
const HTPASSWD: &str = "u:$2b$04$ia3D70hfOrKwO9ylYgVyn.PMtplJr2JIkKAqEZuxTOOqDGwuZYyZG\n";

/// How a registry is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// Anybody may do anything, without TLS.
    Open,
    /// User and password are asked for.
    Guarded,
    /// With a certificate of its own.
    Tls,
}

/// A registry that runs as long as this lives.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    directory: tempfile::TempDir,
    port: u16,
}

impl Registry {
    /// Starts one that is empty.
    pub fn start(setup: Setup) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port("127.0.0.1");
        let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let more = match setup {
            Setup::Open => String::new(),
            Setup::Guarded => {
                fs::write(at("htpasswd"), HTPASSWD).unwrap();
                format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", at("htpasswd"))
            }
            Setup::Tls => {
                make_certificate(directory.path());
                String::new()
            }
        };
        let tls = match setup {
            Setup::Open | Setup::Guarded => String::new(),
            Setup::Tls => format!(", tls: {{certificate: {}, key: {}}}", at("cert.pem"), at("key.pem")),
        };
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             http: {{addr: \"127.0.0.1:{port}\"{tls}}}\n{more}",
            at("data")
        );
        fs::write(at("config.yml"), text).unwrap();
        let child = serve(directory.path(), port);
        Self { child, directory, port }
    }

    /// Ends it; what it has stays.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again, with what it had.
    pub fn resume(&mut self) {
        self.child = serve(self.directory.path(), self.port);
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A repository in it, and perhaps a tag: `docker://127.0.0.1:PORT/NAME`.
    pub fn reference(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.host())
    }

    /// Takes away everything that it has.
    pub fn forget(&self) {
        let data = self.directory.path().join("data/docker/registry/v2");
        for part in ["repositories", "blobs"] {
            let _ = fs::remove_dir_all(data.join(part));
        }
    }

    /// The certificate of one with TLS.
    pub fn certificate(&self) -> String {
        self.directory.path().join("cert.pem").to_str().unwrap().to_owned()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(directory: &Path, port: u16) -> Child {
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(directory.join("config.yml"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().expect("docker-registry is installed");
    eventually("the registry answers", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    child
}

fn make_certificate(directory: &Path) {
    // Without the usual configuration, which makes an authority of it.
    let config = directory.join("openssl.cnf");
    fs::write(&config, "[req]\ndistinguished_name = name\n[name]\n").unwrap();
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
    command.args(["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1"]);
    command
        .arg("-config")
        .arg(config)
        .arg("-keyout")
        .arg(directory.join("key.pem"))
        .arg("-out")
        .arg(directory.join("cert.pem"));
    assert!(command.stderr(Stdio::null()).status().unwrap().success());
}
