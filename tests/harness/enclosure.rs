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
        let command = self.world.command(arguments);
        let arguments = command.get_args().map(|argument| argument.to_str().unwrap());
        let program = command.get_program().to_str().unwrap();
        self.run(&[&[program], &*arguments.collect::<Vec<_>>()].concat())
    }

    /// Runs a script in there, which has to succeed.
    pub fn shell(&self, script: &str) -> String {
        self.run(&["sh", "-e", "-c", script]).success().stdout().to_owned()
    }

    /// Runs a program in there, in the world's directory.
    pub fn run(&self, program: &[&str]) -> Output {
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
        self.world.finish(command)
    }
}

impl Drop for Enclosure<'_> {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
