"""Forks: a new ring from an entry, against a copy of the same files by hard links, which is what one does without."""

import shutil
import subprocess
import time

from .parts import CHAIN, make_chain
from .report import Series, absolute, ratio
from .rig import timed

SMALL = "fork-small"
EVERY = 50


def fork(rig, rounds):
    """'ring fork' of a ring with one small entry and of the chain of 2 GiB; and all of the small ones together."""
    make_chain(rig)
    write = "echo a > /file"
    rig.regen_run("run", "--rootfs", rig.rootfs, "--ring", SMALL, rig.id(), "--", "/bin/sh", "-c", write)
    rig.regen_run("ring", "pack")
    version = Series("regen --version")
    small, big = Series("fork, 1 file"), Series("fork, 20,000 files, 2 GiB")
    links = Series("cp -al, 20,000 files, 2 GiB")
    room = Series("room that a fork takes before it is packed", "KiB")
    whole = Series("1,000 forks one after another, as far as they were made", "s")
    began, between = time.monotonic(), 0.0
    for round_ in range(rounds):
        small.add(rig.time_regen("ring", "fork", SMALL, f"small-{round_}").whole)
        if round_ % EVERY:
            continue
        pause = time.monotonic()
        version.add(timed([rig.regen, "--version"]).whole)
        big.add(rig.time_regen("ring", "fork", CHAIN, f"big-{round_}").whole)
        room.add(_own_room(rig, f"big-{round_}"))
        target = rig.top / "linked"
        links.add(timed(["cp", "-al", str(rig.store / "layers"), str(target)]).whole)
        shutil.rmtree(target)
        between += time.monotonic() - pause
    whole.add((time.monotonic() - began - between) * 1000 / rounds)
    rig.regen_run("ring", "pack")
    checks = [
        absolute("fork: 1,000 of them", whole, 3.0),
        absolute("fork: 2 GiB", big, 5.0),
        ratio("fork: 2 GiB / 1 file", big, small, 1.5),
        ratio("fork: regen / cp -al", big, links),
        absolute("fork: room", room, 64.0),
    ]
    return [version, small, big, links, room, whole], checks


def _own_room(rig, ring):
    """What only that ring has: files with further names belong to others, too."""
    find = ["find", str(rig.store / "rings/root" / ring), "(", "-type", "d", "-o", "-links", "1", ")", "-printf", "%k\n"]
    output = subprocess.run(find, check=True, capture_output=True, text=True).stdout
    return float(sum(map(int, output.split())))
