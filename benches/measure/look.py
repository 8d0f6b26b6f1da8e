"""What it takes to look into a ring: one file, a mount, and a tree that comes back."""

import shlex
import shutil
import subprocess

from . import parts
from .report import Series, ratio
from .rig import timed

RING = "look"
LOOKS = 20


def look(rig, rounds):
    """'ring cat' and 'ring mount' on an entry of 2 GiB against 'run' and mount(8); 'ring restore' of it against 'cp -a'."""
    rig.regen_run("run", "--rootfs", rig.rootfs, "--ring", RING, rig.id(), "--", "/bin/sh", "-c", "cp -a /src /data")
    rig.regen_run("run", "--rootfs", rig.rootfs, "--ring", RING, rig.id(), "--", "/bin/sh", "-c", "echo x > /etc/motd")
    rig.regen_run("ring", "pack")
    return [sum(both, []) for both in zip(_looks(rig, rounds), _restore(rig, rounds))]


def _looks(rig, rounds):
    at, by_hand = rig.top / "at", rig.top / "by-hand"
    at.mkdir()
    by_hand.mkdir()
    layers = [rig.store / "layers" / layer / "diff" for layer in rig.ring_state(RING)["entries"][-1]["layers"]]
    lowers = ":".join(map(str, [*reversed(layers), rig.rootfs]))
    cat, run = Series("ring cat"), Series("run of cat in the same ring")
    mount, peer = Series("ring mount and umount"), Series("mount and umount of the same overlay")

    def run_cat():
        cat.add(rig.time_regen("ring", "cat", RING, "/etc/motd").whole)

    def run_run():
        arguments = ["run", "--rootfs", rig.rootfs, "--ring", RING, rig.id(), "--", "/bin/busybox", "cat", "/etc/motd"]
        run.add(rig.time_regen(*arguments).whole)

    def run_mount():
        first = rig.time_regen("ring", "mount", RING, at).whole
        mount.add(first + rig.time_regen("ring", "umount", at).whole)

    def run_peer():
        options = ["-t", "overlay", "-o", f"ro,lowerdir={lowers}", "regen", str(by_hand)]
        first = timed(["mount", *options]).whole
        peer.add(first + timed(["umount", str(by_hand)]).whole)

    for _ in range(LOOKS if rounds > 1 else 1):
        for _, one in parts.shuffled({"cat": run_cat, "run": run_run, "mount": run_mount, "peer": run_peer}):
            one()
    checks = [ratio("look: ring cat / run of cat", cat, run, 1.0), ratio("look: ring mount / mount(8)", mount, peer)]
    return [cat, run, mount, peer], checks


def _restore(rig, rounds):
    seen = rig.top / "seen"
    seen.mkdir()
    rig.regen_run("ring", "mount", RING, seen)
    ours, peer = Series("ring restore of 2 GiB"), Series("cp -a of the mounted state, flushed")
    targets = {"ours": rig.top / "ours", "peer": rig.top / "peer"}

    def run_ours():
        ours.add(rig.time_regen("ring", "restore", RING, "/data", "--to", targets["ours"]).whole)

    def run_peer():
        source, target = shlex.quote(str(seen / "data")), shlex.quote(str(targets["peer"]))
        peer.add(timed(["bash", "-c", f"mkdir {target} && cp -a {source} {target} && sync -f {target}"]).whole)

    try:
        for _ in range(rounds):
            for name, one in parts.shuffled({"ours": run_ours, "peer": run_peer}):
                subprocess.run(["sync"], check=True)
                one()
                shutil.rmtree(targets[name])
    finally:
        rig.regen_run("ring", "umount", seen)
    return [ours, peer], [ratio("look: ring restore / cp -a", ours, peer, 1.2)]
