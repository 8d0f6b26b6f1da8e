//! A real etcd for a test: one member or several, on loopback ports and with data of their own.
//!
//! Make it after the world and so let it go before: its members are killed and reaped when it is dropped.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::certificate::{Authority, Certificate};
use super::port::free_port;

/// A member answers within this, on a slow machine with everything else running.
const PATIENCE: Duration = Duration::from_secs(60);

/// An etcd.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    /// The arguments that all have.
    common: Vec<String>,
    security: Option<Security>,
    /// `USER:PASSWORD` for `etcdctl`.
    user: Option<String>,
}

/// Who vouches for whom in an encrypted one.
#[derive(Debug)]
pub struct Security {
    pub authority: Authority,
    pub server: Certificate,
    pub client: Certificate,
}

#[derive(Debug)]
struct Member {
    name: String,
    directory: PathBuf,
    client_port: u16,
    peer_port: u16,
    child: Option<Child>,
}

impl Etcd {
    /// One member, with its files below a directory: a world, or a temporary one.
    pub fn start(base: impl AsRef<Path>) -> Self {
        Self::new(&base.as_ref().join("etcd"), 1, None)
    }

    /// Several members of one cluster.
    pub fn cluster(base: impl AsRef<Path>, count: usize) -> Self {
        Self::new(&base.as_ref().join("etcd"), count, None)
    }

    /// One member that wants encrypted connections, and certificates of clients.
    pub fn encrypted(base: impl AsRef<Path>) -> Self {
        let etcd = Self::encrypted_as(base, "IP:127.0.0.1", 10);
        etcd.wait_until_healthy();
        etcd
    }

    /// The same, with a certificate for another host, or that lasts for another number of days. Nobody may trust it, so it
    /// is only listening when this returns.
    pub fn encrypted_as(base: impl AsRef<Path>, host: &str, days: i32) -> Self {
        let authority = Authority::new(&base.as_ref().join("certificates"));
        let server = authority.issue("server", host, days);
        let client = authority.issue("client", "IP:127.0.0.1", 10);
        let mut etcd = Self::plan(&base.as_ref().join("etcd-tls"), 1, Some(Security { authority, server, client }));
        etcd.begin(0);
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(etcd.members[0].endpoint()).is_err() {
            assert!(Instant::now() < deadline, "etcd does not begin: {}", etcd.log(0));
            std::thread::sleep(Duration::from_millis(10));
        }
        etcd
    }

    /// As many members as are wanted, below a directory.
    fn new(directory: &Path, count: usize, security: Option<Security>) -> Self {
        let mut etcd = Self::plan(directory, count, security);
        (0..count).for_each(|index| etcd.begin(index));
        etcd.wait_until_healthy();
        etcd
    }

    /// Ends all members and begins another cluster at the same addresses, with nothing in it.
    pub fn make_anew(&mut self) {
        for index in 0..self.members.len() {
            self.kill(index);
            fs::remove_dir_all(&self.members[index].directory).unwrap();
        }
        // A cluster's number is made of its members' addresses and this word.
        self.common.push("--initial-cluster-token=anew".to_owned());
        (0..self.members.len()).for_each(|index| self.begin(index));
        self.wait_until_healthy();
    }

    fn plan(directory: &Path, count: usize, security: Option<Security>) -> Self {
        let members: Vec<_> = (0..count)
            .map(|index| Member {
                name: format!("m{index}"),
                directory: directory.join(format!("m{index}")),
                client_port: free_port("127.0.0.1"),
                peer_port: free_port("127.0.0.1"),
                child: None,
            })
            .collect();
        let peers: Vec<_> = members.iter().map(|member| format!("{}={}", member.name, member.peer_url())).collect();
        let mut common = vec![format!("--initial-cluster={}", peers.join(","))];
        if let Some(Security { authority, server, .. }) = &security {
            common.push(format!("--cert-file={}", server.certificate.display()));
            common.push(format!("--key-file={}", server.key.display()));
            common.push(format!("--trusted-ca-file={}", authority.certificate().display()));
            common.push("--client-cert-auth".to_owned());
        }
        Self { members, common, security, user: None }
    }

    /// How regen is told of it.
    pub fn url(&self) -> String {
        let endpoints: Vec<_> = self.members.iter().map(Member::endpoint).collect();
        format!("etcd://{}", endpoints.join(","))
    }

    /// The certificates of an encrypted one.
    pub fn security(&self) -> &Security {
        self.security.as_ref().unwrap()
    }

    /// From now on it knows users: root, and one that may use the keys of a prefix.
    pub fn enable_users(&mut self, name: &str, password: &str, prefix: &str) {
        self.ctl(&["user", "add", "root:rootword"]);
        self.ctl(&["role", "add", "root"]);
        self.ctl(&["user", "grant-role", "root", "root"]);
        self.ctl(&["user", "add", &format!("{name}:{password}")]);
        self.ctl(&["role", "add", name]);
        self.ctl(&["role", "grant-permission", name, "readwrite", "--prefix=true", prefix]);
        self.ctl(&["user", "grant-role", name, name]);
        self.ctl(&["auth", "enable"]);
        self.user = Some("root:rootword".to_owned());
    }

    /// `etcdctl`, and what it prints.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let all: Vec<_> = (0..self.members.len()).collect();
        self.try_ctl(&all, arguments).unwrap_or_else(|error| panic!("etcdctl {arguments:?}: {error}"))
    }

    /// Ends a member at once, as a machine that loses power does.
    pub fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.members[index].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Begins a member that was killed, with the data that it had, and waits until it answers.
    pub fn restart(&mut self, index: usize) {
        self.begin(index);
        let deadline = Instant::now() + PATIENCE;
        while self.try_ctl(&[index], &["endpoint", "health"]).is_err() {
            assert!(Instant::now() < deadline, "member {index} does not come back: {}", self.log(index));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A member does nothing for a while, and its connections stay open.
    pub fn pause(&self, index: usize) {
        self.signal(index, Signal::SIGSTOP);
    }

    /// It goes on.
    pub fn resume(&self, index: usize) {
        self.signal(index, Signal::SIGCONT);
    }

    /// The member that leads, once there is one.
    pub fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = (0..self.members.len()).filter(|index| self.members[*index].child.is_some());
            if let Some(index) = found.into_iter().find(|index| self.leads(*index)) {
                return index;
            }
            assert!(Instant::now() < deadline, "nobody leads");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Every change so far is forgotten; the revision of one after all of them.
    pub fn compact(&self) -> u64 {
        self.ctl(&["put", "compacted", "x"]);
        let status: Value = serde_json::from_str(&self.ctl(&["endpoint", "status", "-w", "json"])).unwrap();
        let revision = status[0]["Status"]["header"]["revision"].as_u64().unwrap();
        self.ctl(&["compact", "--physical=true", &revision.to_string()]);
        revision
    }

    /// What a member has written down.
    pub fn log(&self, index: usize) -> String {
        fs::read_to_string(self.members[index].log()).unwrap_or_default()
    }

    fn begin(&mut self, index: usize) {
        let scheme = self.scheme();
        let member = &mut self.members[index];
        assert!(member.child.is_none(), "it runs");
        fs::create_dir_all(&member.directory).unwrap();
        let client_url = format!("{scheme}://{}", member.endpoint());
        let log = File::options().create(true).append(true).open(member.log()).unwrap();
        let mut command = Command::new("etcd");
        command.args(["--name", &member.name, "--data-dir"]).arg(member.directory.join("data"));
        command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
        command.args(["--listen-peer-urls", &member.peer_url(), "--initial-advertise-peer-urls", &member.peer_url()]);
        command.args(&self.common).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        member.child = Some(command.spawn().unwrap());
    }

    fn wait_until_healthy(&self) {
        let deadline = Instant::now() + PATIENCE;
        let all: Vec<_> = (0..self.members.len()).collect();
        while let Err(error) = self.try_ctl(&all, &["endpoint", "health"]) {
            assert!(Instant::now() < deadline, "etcd does not begin: {error}\n{}", self.log(0));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn leads(&self, index: usize) -> bool {
        let Ok(text) = self.try_ctl(&[index], &["endpoint", "status", "-w", "json"]) else { return false };
        let Ok(found) = serde_json::from_str::<Value>(&text) else { return false };
        let status = &found[0]["Status"];
        status["leader"].is_u64() && status["leader"] == status["header"]["member_id"]
    }

    fn try_ctl(&self, members: &[usize], arguments: &[&str]) -> Result<String, String> {
        let scheme = self.scheme();
        let urls: Vec<_> =
            members.iter().map(|index| format!("{scheme}://{}", self.members[*index].endpoint())).collect();
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", urls.join(",")));
        if let Some(Security { authority, client, .. }) = &self.security {
            command.arg("--cacert").arg(authority.certificate());
            command.arg("--cert").arg(&client.certificate).arg("--key").arg(&client.key);
        }
        if let Some(user) = &self.user {
            command.args(["--user", user]);
        }
        let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    fn signal(&self, index: usize, signal: Signal) {
        let child = self.members[index].child.as_ref().unwrap();
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    }

    fn scheme(&self) -> &'static str {
        if self.security.is_some() { "https" } else { "http" }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(mut child) = member.child.take() {
                // Both fail only if it has ended.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

impl Member {
    fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer_port)
    }

    fn log(&self) -> PathBuf {
        self.directory.join("log")
    }
}
