//! The wires of a site: each host has one to a switch, which is in a network namespace that has nothing else.

use std::process::{Child, Command, Stdio};

use super::super::{Running, World};
use super::Host;

/// How a host, or a pair of them, is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Its interface is down: who sends is told at once that there is no way.
    Down,
    /// What is sent is lost, in both directions, and nobody is told.
    Silence,
}

/// The switch lives as long as its process.
#[derive(Debug)]
pub(super) struct Switch(Child);

/// What every host has of the net 10.77.0.0/24.
pub(super) fn address(index: usize) -> String {
    format!("10.77.0.{}", index + 1)
}

impl Switch {
    pub(super) fn new(world: &World) -> Self {
        let script = "ip link add switch type bridge && ip link set switch up && echo ready && exec sleep 100000";
        let mut command = Command::new("unshare");
        // The prefix shows whose it is.
        command.args(["--net", "sh", "-c", script, &world.id("switch")]).current_dir(world.base());
        command.stdin(Stdio::null());
        let mut running: Running = world.spawn(command);
        running.wait_for("ready");
        Self(running.child)
    }

    /// Lays a wire to a host. It is born with its ends in their two namespaces, never in the machine's.
    pub(super) fn connect(&self, world: &World, host: &Host) {
        let (port, keeper) = (format!("to-{}", host.name), host.keeper.id());
        let script = format!(
            "ip link add {port} type veth peer name eth0 netns {keeper} && ip link set {port} master switch up"
        );
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.0.id().to_string(), "--net", "--", "sh", "-ec", &script]);
        world.finish(command).success();
        host.shell(world, &format!("ip address add {}/24 dev eth0; ip link set eth0 up", host.address)).success();
    }

    pub(super) fn end(&mut self) {
        // Both fail only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The script that cuts a host off from some addresses, or from all.
pub(super) fn cut(way: Cut, others: Option<&[String]>) -> String {
    match (way, others) {
        (Cut::Down, None) => "ip link set eth0 down".to_owned(),
        (Cut::Down, Some(others)) => {
            others.iter().map(|other| format!("ip route add unreachable {other}/32;")).collect()
        }
        (Cut::Silence, None) => rules("iifname != lo", "oifname != lo"),
        (Cut::Silence, Some(others)) => {
            let set = others.join(", ");
            rules(&format!("ip saddr {{ {set} }}"), &format!("ip daddr {{ {set} }}"))
        }
    }
}

fn rules(incoming: &str, outgoing: &str) -> String {
    format!(
        "nft -f - <<'END'
table inet cut {{
    chain incoming {{
        type filter hook input priority 0;
        {incoming} drop
    }}
    chain outgoing {{
        type filter hook output priority 0;
        {outgoing} drop
    }}
}}
END"
    )
}

/// The script that undoes all cuts of a host.
pub(super) const HEAL: &str = "
nft list table inet cut >/dev/null 2>&1 && nft delete table inet cut
ip route show type unreachable | while read -r route; do ip route delete $route; done
ip link set eth0 up";
