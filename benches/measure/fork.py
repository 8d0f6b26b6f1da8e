"""Forks: a new ring from an entry, against a copy of the same files by hard links, which is what one does without."""

import os
import shutil
import subprocess
import time

from .parts import CHAIN, make_chain
from .report import Series, absolute, difference, ratio
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
    cpu = Series("fork, 1 file: processor time")
    floor = Series("a small file written, synced and renamed, its directory synced")
    links = Series("cp -al, 20,000 files, 2 GiB")
    room = Series("room that a fork takes", "KiB")
    whole = Series("1,000 forks one after another, as far as they were made", "s")
    began, between = time.monotonic(), 0.0
    for round_ in range(rounds):
        run = rig.time_regen("ring", "fork", SMALL, f"small-{round_}")
        small.add(run.whole)
        cpu.add(run.cpu)
        if round_ % EVERY:
            continue
        pause = time.monotonic()
        for _ in range(10):
            version.add(timed([rig.regen, "--version"]).whole)
            floor.add(_sync(rig.store / "rings/root"))
        big.add(rig.time_regen("ring", "fork", CHAIN, f"big-{round_}").whole)
        room.add(_own_room(rig, f"big-{round_}"))
        target = rig.top / "linked"
        links.add(timed(["cp", "-al", str(rig.store / "layers"), str(target)]).whole)
        shutil.rmtree(target)
        between += time.monotonic() - pause
    whole.add((time.monotonic() - began - between) * 1000 / rounds)
    together = Series(f"{rounds:,} forks by one command", "s")
    together.add(rig.time_regen("ring", "fork", SMALL, *(f"together-{number}" for number in range(rounds))).whole / 1e3)
    rig.regen_run("ring", "pack")
    checks = [
        absolute("fork: 1,000 of them, a command each", whole, 3.0),
        absolute(f"fork: {rounds:,} of them by one command", together, 3.0),
        absolute("fork: 2 GiB", big, 5.0),
        absolute("fork: 1 file", small, 5.0),
        ratio("fork: 2 GiB / 1 file", big, small, 1.5),
        difference("fork: 1 file, beyond process start", small, version),
        ratio("fork: regen / cp -al", big, links),
        absolute("fork: room", room, 64.0),
    ]
    return [version, floor, small, cpu, big, links, room, whole, together], checks


def _sync(directory):
    """What the disk alone takes for a new file that is to survive a power cut."""
    began = time.monotonic()
    file = os.open(directory / ".tmp-bench", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(file, bytes(1024))
    os.fsync(file)
    os.close(file)
    os.rename(directory / ".tmp-bench", directory / ".bench")
    opened = os.open(directory, os.O_RDONLY)
    os.fsync(opened)
    took = time.monotonic() - began
    os.close(opened)
    os.unlink(directory / ".bench")
    return took * 1e3


def _own_room(rig, ring):
    """What only that ring has: files with further names belong to others, too."""
    find = ["find", str(rig.store / "rings/root" / ring), "(", "-type", "d", "-o", "-links", "1", ")", "-printf", "%k\n"]
    output = subprocess.run(find, check=True, capture_output=True, text=True).stdout
    return float(sum(map(int, output.split())))
