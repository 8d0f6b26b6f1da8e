"""How long a container stands still for a snapshot of what it has changed since the last one, and what that costs."""

import json
import re
import shutil
import struct
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from .report import Series, absolute, ratio

MIB = 1 << 20
WRITE = "dd if=/dev/urandom of=/data/changed bs=65536 count=16 conv=notrunc 2>/dev/null"
STOOD = re.compile(r"stood still for ([0-9.]+)(ns|µs|ms|s)\b")
UNITS = {"ns": 1e-6, "µs": 1e-3, "ms": 1.0, "s": 1e3}
# Where blocks can be shared, and where they cannot.
LIMITS = {"ext4": 30.0, "xfs": 10.0, "btrfs": 10.0}


def snapshot(rig, rounds):
    """A container with 2 GiB in 20,000 files that writes 1 MiB between two snapshots; `cp` of it all is the peer."""
    gap = rig.rootfs / "bin/gap"
    source = Path(__file__).with_name("gap.c")
    subprocess.run(["cc", "-O2", "-static", "-o", gap, source], check=True)
    series, checks = [], []
    for kind in LIMITS:
        with _store_on(rig, kind) as store:
            if store is None:
                print(f"snapshot: no {kind} here")
                continue
            measured, compared = _on(rig, (kind, store), rounds)
            series += measured
            checks += compared
    return series, checks


def _on(rig, place, rounds):
    kind, store = place
    trace = Series(f"snapshot, {kind}: stood still, by regen's own trace")
    inside = Series(f"snapshot, {kind}: longest gap of a program inside")
    quiet = Series(f"the same program, {kind}, while nothing is done")
    whole = Series(f"snapshot, {kind}: the whole command")
    bytes_ = Series(f"snapshot, {kind}: disk that it takes", "MiB")
    peer = Series(f"cp -a --reflink=auto of the upper, {kind}")
    base = [rig.regen, "--root", str(rig.top / f"run-{kind}"), "--store", str(store / "store")]
    box, ring = rig.id(), "snapshots"
    script = "cp -a /src /data; sync; gap /dev/gap & exec sleep 100000"
    command = [*base, "run", "-d", "--rootfs", rig.rootfs, "--ring", ring, box, "--", "/bin/sh", "-c", script]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        pid = _state([*base, "state", box])["pid"]
        file = Path(f"/proc/{pid}/root/dev/gap")
        while not (file.exists() and file.stat().st_size == 8):
            time.sleep(0.1)
        # The first one is of everything.
        subprocess.run([*base, "ring", "snapshot", ring], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*base, "ring", "pack", ring], check=True, stdout=subprocess.DEVNULL)
        upper = next((store / "store/runs").glob("*/upper/data")).parent
        for _ in range(rounds):
            subprocess.run([*base, "exec", box, "/bin/sh", "-c", WRITE], check=True)
            time.sleep(0.5)
            before, started = _used(store), time.monotonic()
            _begin_anew(file)
            done = subprocess.run([*base, "--debug", "ring", "snapshot", ring], check=True, capture_output=True, text=True)
            inside.add(_longest(file))
            whole.add((time.monotonic() - started) * 1e3)
            number, unit = STOOD.search(done.stderr).groups()
            trace.add(float(number) * UNITS[unit])
            subprocess.run([*base, "ring", "pack", ring], check=True, stdout=subprocess.DEVNULL)
            subprocess.run(["sync", "--file-system", store], check=True)
            bytes_.add((_used(store) - before) / MIB)
            _begin_anew(file)
            time.sleep(whole.values[-1] / 1e3)
            quiet.add(_longest(file))
            started = time.monotonic()
            subprocess.run(["cp", "-a", "--reflink=auto", upper, store / "peer"], check=True)
            peer.add((time.monotonic() - started) * 1e3)
            shutil.rmtree(store / "peer")
    finally:
        subprocess.run([*base, "delete", "--force", box], check=True)
        subprocess.run([*base, "ring", "pack"], check=True, stdout=subprocess.DEVNULL)
    checks = [
        absolute(f"snapshot, {kind}: stood still", trace, LIMITS[kind]),
        absolute(f"snapshot, {kind}: gap inside", inside),
        ratio(f"snapshot, {kind}: the whole command / cp of the upper", whole, peer),
        absolute(f"snapshot, {kind}: disk for 1 MiB that changed", bytes_, 8.0),
    ]
    return [trace, inside, quiet, whole, bytes_, peer], checks


@contextmanager
def _store_on(rig, kind):
    """A file system in a file; None where it cannot be made or mounted."""
    image, point = rig.top / f"{kind}.image", rig.top / kind
    make = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q"], "btrfs": ["mkfs.btrfs", "-q"]}[kind]
    if shutil.which(make[0]) is None:
        yield None
        return
    with image.open("wb") as file:
        file.truncate(12 << 30)
    point.mkdir()
    try:
        subprocess.run([*make, image], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if subprocess.run(["mount", "-o", "loop", image, point], check=False).returncode != 0:
            yield None
            return
        try:
            yield point
        finally:
            _unmount(point)
    finally:
        image.unlink()


def _unmount(point):
    # A worker may still be at its end.
    for _ in range(300):
        if subprocess.run(["umount", point], check=False, stderr=subprocess.DEVNULL).returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError(f"{point} is still in use")


def _begin_anew(file):
    # Not by making it anew: it is mapped.
    with file.open("r+b") as gap:
        gap.write(bytes(8))


def _longest(file):
    longest = struct.unpack("=Q", file.read_bytes())[0]
    if longest == 0:
        raise SystemExit("snapshot: the program inside does not run any more")
    return longest / 1e6


def _used(directory):
    return shutil.disk_usage(directory).used


def _state(command):
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
