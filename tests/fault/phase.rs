//! One command that is killed at many points, each time in the same world.

use std::any::Any;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::{Instant, SystemTime};

use crate::check::find_litter;
use crate::harness::{World, eventually};
use crate::trace::{Follow, Point, Traced, Victim, kill_at, record};

/// How many points of each phase an ordinary run of the tests takes.
pub const SHARE: usize = 3;

/// The ring that everything is about, and the file in it that tells its state.
pub const RING: &str = "a";
const LOOK: &str = "test ! -e /state || cat /state";

/// A command, and what must be so whenever it dies.
#[derive(Debug)]
pub struct Phase {
    /// In reports.
    pub name: &'static str,
    /// Which processes die.
    pub follow: Follow,
    /// Makes the store that all points begin with.
    pub prepare: fn(&World),
    /// Makes what cannot be copied, for each point anew: the container of this id.
    pub arm: fn(&World, &str),
    /// The command that dies.
    pub command: fn(&World, &str) -> Vec<String>,
    /// Who comes next.
    pub next: Next,
    /// What a run in the ring may then find in the file; everything else is lost or invented.
    pub allowed: &'static [&'static str],
    /// What else must be so once the container is gone.
    pub check: fn(&World),
}

/// What follows the crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// `delete --force` of the container, as an engine does it.
    Delete,
    /// The next run in the ring; the container is deleted late.
    Run,
    /// `delete --force` of the container, which was not stopped by the crash and can go on.
    GoesOn,
}

/// A world in which the phase is ready to begin.
struct Stage<'a> {
    phase: &'a Phase,
    world: World,
    /// Whether there is no fault in it to begin with.
    sound: bool,
    count: usize,
}

impl Phase {
    /// Kills the command at its points, all or some, and checks what is left each time.
    pub fn check(&self) {
        let began = Instant::now();
        let mut stage = Stage::new(self);
        let mut all = stage.record();
        let total = all.len();
        let points = if std::env::var_os("REGEN_OCI_FAULT_ALL").is_some() { all } else { choose(&mut all, SHARE) };
        let (mut killed, mut faults) = (0, Vec::new());
        for point in &points {
            match catch_unwind(AssertUnwindSafe(|| stage.strike(point))) {
                Ok(hit) => killed += usize::from(hit),
                Err(panic) => {
                    faults.push(format!("{} killed at {point}: {}", self.name, text_of(&*panic)));
                    // Whatever it left is told already.
                    let _ = catch_unwind(AssertUnwindSafe(|| drop(stage)));
                    stage = Stage::new(self);
                }
            }
        }
        let seconds = began.elapsed().as_secs_f32();
        let (name, points, failed) = (self.name, points.len(), faults.len());
        println!("fault: {name}: {points} of {total} points, {killed} killed, {failed} failed, {seconds:.1} s");
        assert!(faults.is_empty(), "{failed} of {points} points failed:\n{}", faults.join("\n"));
        assert!(killed * 2 > points, "only {killed} of {points} points were reached");
    }
}

impl<'a> Stage<'a> {
    fn new(phase: &'a Phase) -> Self {
        let world = World::new("fault");
        (phase.prepare)(&world);
        // Nobody is at work in the store while it is put aside.
        assert_eq!(world.leaks(), [""; 0]);
        if world.store().exists() {
            copy(&world, "store", "saved");
        }
        let sound = world.regen(&["ring", "verify"]).code == 0;
        Self { phase, world, sound, count: 0 }
    }

    /// One run without harm, checked as the others are, and its points.
    fn record(&mut self) -> Vec<Point> {
        let (id, victim) = self.arm();
        let points = record(&self.world, &victim);
        self.settle(&id, None);
        points
    }

    /// One run that is killed. Whether it was.
    fn strike(&mut self, point: &Point) -> bool {
        println!("fault: {} at {point}", self.phase.name);
        let (id, victim) = self.arm();
        let traced = kill_at(&self.world, &victim, point);
        let killed = traced.killed;
        self.settle(&id, Some(traced));
        killed
    }

    fn arm(&mut self) -> (String, Victim) {
        let world = &self.world;
        let _ = fs::remove_dir_all(world.store());
        if world.base().join("saved").exists() {
            copy(world, "saved", "store");
        }
        self.count += 1;
        let id = world.id(&format!("c{}", self.count));
        (self.phase.arm)(world, &id);
        let victim = Victim { arguments: (self.phase.command)(world, &id), follow: self.phase.follow };
        (id, victim)
    }

    /// The commands that come after a crash: none of them fails, and at the end everything is in order.
    fn settle(&self, id: &str, traced: Option<Traced>) {
        let world = &self.world;
        let verified = world.regen(&["ring", "verify"]);
        if self.sound {
            verified.success();
        }
        match self.phase.next {
            Next::Delete => world.delete(id),
            Next::Run => {}
            Next::GoesOn => {
                eventually("it goes on", || world.status(id) == "running");
                world.delete(id);
            }
        }
        if let Some(traced) = traced {
            traced.finish();
        }
        let seen = self.look();
        let lines: Vec<&str> = seen.split_ascii_whitespace().collect();
        let found = lines.join(" ");
        assert!(self.phase.allowed.contains(&&*found), "the next run found '{found}' of {:?}", self.phase.allowed);
        world.delete(id);
        (self.phase.check)(world);
        // Nothing stands in the way of more work, and what the crash left goes with it.
        world.run_in(RING, "echo more >> /state").success();
        world.pack();
        world.regen(&["ring", "verify"]).success();
        assert_eq!(self.look().trim(), format!("{seen}\nmore").trim());
        let litter = find_litter(world);
        assert!(litter.is_empty(), "left behind: {litter:#?}");
    }

    fn look(&self) -> String {
        self.world.run_in(RING, LOOK).success().stdout().trim().to_owned()
    }
}

/// The arguments of a run in the ring.
pub fn run_arguments(world: &World, id: &str, flags: &[&str], script: &str) -> Vec<String> {
    let rootfs = world.rootfs();
    let mut all = vec!["run", "--rootfs", rootfs.to_str().unwrap(), "--ring", RING];
    all.extend(flags);
    all.extend([id, "--", "sh", "-c", script]);
    all.into_iter().map(str::to_owned).collect()
}

/// As the harness takes them.
pub fn strs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// Copies a directory of the world with all its attributes.
fn copy(world: &World, from: &str, to: &str) {
    let mut command = Command::new("cp");
    command.arg("-a").arg(world.base().join(from)).arg(world.base().join(to));
    world.finish(command).success();
}

/// What somebody who panicked said.
pub fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a text")
}

/// Some of the points, by a seed that is told, so that a failure can be had again.
pub fn choose(points: &mut Vec<Point>, share: usize) -> Vec<Point> {
    let given = std::env::var("REGEN_OCI_FAULT_SEED").ok().map(|text| text.parse().expect("a number"));
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos().into();
    let mut seed: u64 = given.unwrap_or_else(now);
    println!("fault: REGEN_OCI_FAULT_SEED={seed}");
    let mut chosen = Vec::new();
    while chosen.len() < share && !points.is_empty() {
        // The step of SplitMix64: the next number of a sequence that passes for random.
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let index = (mixed ^ (mixed >> 31)) % points.len() as u64;
        chosen.push(points.swap_remove(usize::try_from(index).unwrap()));
    }
    chosen
}
