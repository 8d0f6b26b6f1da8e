"""A container's end and its next start from what it was: an entry of a ring against an image that podman makes."""

import subprocess

from . import parts
from .report import Check, Series, ratio
from .rig import timed

COPY = ["/bin/sh", "-c", "cp -a /src /data; sync; echo end"]
IMAGE, NEXT = "localhost/box:1", "localhost/box:2"
LIMIT = 1 / 500
PODMAN_ROUNDS = 3


def commit(rig, rounds):
    """A container that has written 2 GiB in 20,000 files ends and is started again as it was."""
    podman = _Podman(rig)
    seal, again = Series("end of program to return of 'run'"), Series("the next 'run' on the ring")
    ours, theirs = Series("both: exit and next start"), Series("both: podman commit and podman run")
    commits, restarts = Series("podman commit"), Series("podman run of what it made")

    def run_ours():
        on_ring = ["run", "--rootfs", rig.rootfs, "--ring", "commit@base", "--depth", "1", rig.id(), "--", *COPY]
        run = rig.time_regen(*on_ring)
        seal.add(run.whole - run.first)
        on_ring = ["run", "--rootfs", rig.rootfs, "--ring", "commit", rig.id(), "--", "/bin/sh", "-c", "[ -d /data ]"]
        again.add(rig.time_regen(*on_ring).whole)
        ours.add(seal.values[-1] + again.values[-1])
        rig.regen_run("ring", "pack")

    def run_theirs():
        podman.call("run", "--network", "none", "--name", "box", "--volume", f"{rig.rootfs / 'src'}:/src:ro", IMAGE, *COPY)
        commits.add(podman.time("commit", "--quiet", "box", NEXT))
        there = ["/bin/sh", "-c", "[ -d /data ]"]
        restarts.add(podman.time("run", "--network", "none", "--name", "next", NEXT, *there))
        theirs.add(commits.values[-1] + restarts.values[-1])
        podman.clear()

    try:
        for round_ in range(rounds):
            # podman takes minutes, so a few of its values have to do.
            ways = {"ours": run_ours} | ({"theirs": run_theirs} if round_ < PODMAN_ROUNDS else {})
            for _, run in parts.shuffled(ways):
                run()
    finally:
        podman.remove()
    times = [theirs.median / ours.median, theirs.least / ours.least]
    checks = [
        ratio("commit: exit and next start / podman commit and run", ours, theirs, LIMIT),
        Check("commit: so many times as fast (to reach: 500)", *times, None, "x"),
    ]
    return [seal, again, ours, commits, restarts, theirs], checks


class _Podman:
    """podman as it comes, with directories of the benchmark's own, limits that any machine grants, and an image."""

    def __init__(self, rig):
        self.home = home = rig.top / "podman-commit"
        home.mkdir()
        limits = '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]\n'
        engine = '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\nlock_type = "file"\n'
        (home / "containers.conf").write_text(limits + engine)
        flags = ["--root", home / "root", "--runroot", home / "run", "--tmpdir", home / "tmp", "--runtime", "runc"]
        environment = ["env", f"CONTAINERS_CONF={home / 'containers.conf'}"]
        self.base = [*map(str, [*environment, "podman", *flags])]
        tar = ["tar", "--create", "--directory", str(rig.rootfs), "--exclude", "./src", "--file", str(home / "box.tar"), "."]
        subprocess.run(tar, check=True)
        self.call("import", "--quiet", home / "box.tar", IMAGE)

    def call(self, *arguments):
        subprocess.run([*self.base, *map(str, arguments)], check=True, capture_output=True)

    def time(self, *arguments):
        return timed([*self.base, *arguments]).whole

    def clear(self):
        """Takes away what a round made; not what the next one starts from."""
        self.call("rm", "--force", "--all")
        self.call("rmi", NEXT)

    def remove(self):
        """Takes away everything; its mounts too, which the directory could not be removed with."""
        self.call("rm", "--force", "--all")
        self.call("rmi", "--force", "--all")
        subprocess.run(["umount", "--recursive", str(self.home / "root/overlay")], check=False, capture_output=True)
