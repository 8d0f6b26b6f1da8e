//! A mount namespace of a test's own, for file systems that nobody else is to see.

use std::process::{Child, Command, Stdio};

use super::{Output, World};

/// The namespace lives as long as this value.
#[derive(Debug)]
pub struct Enclosure<'a> {
    world: &'a World,
    keeper: Child,
}

impl<'a> Enclosure<'a> {
    /// Enters a new namespace and runs a script there, which mounts something.
    pub fn new(world: &'a World, script: &str) -> Self {
        let script = format!("set -e; {script}; echo ready; exec sleep 1000");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]).current_dir(world.base());
        command.stdin(Stdio::null());
        let mut running = world.spawn(command);
        running.wait_for("ready");
        Self { world, keeper: running.child }
    }

    /// Runs the program of the world in there.
    pub fn regen(&self, arguments: &[&str]) -> Output {
        self.world.finish(self.command(&self.world.command(arguments)))
    }

    /// Runs a script in there, which has to succeed.
    pub fn shell(&self, script: &str) -> String {
        self.run(&["sh", "-e", "-c", script]).success().stdout().to_owned()
    }

    /// Runs a program in there, in the world's directory.
    pub fn run(&self, program: &[&str]) -> Output {
        self.world.finish(self.enter(program))
    }

    /// A command, as it is called in there.
    pub fn command(&self, command: &Command) -> Command {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        self.enter(&words.map(|word| word.to_str().unwrap()).collect::<Vec<_>>())
    }

    fn enter(&self, program: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.keeper.id().to_string(),
            "--mount",
            "--",
            "sh",
            "-c",
            "cd \"$0\" && exec \"$@\"",
        ]);
        command.arg(self.world.base()).args(program);
        command
    }
}

impl Drop for Enclosure<'_> {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
