"""What every part of the benchmark stands on: a place on disk, bundles, and a stopwatch for commands."""

import ctypes
import json
import os
import select
import shutil
import struct
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Run:
    """One command: milliseconds from its start to its first byte of output and to its end, what it took of the processors,
    and its peak memory."""

    first: float
    whole: float
    peak_mib: float
    ended: float
    cpu: float


class Rig:
    """A directory that holds a root file system, a bundle, state and store; removed at the end with all in it."""

    def __init__(self, regen, parent, seconds):
        self.regen, self.seconds = regen, seconds
        self.top = Path(tempfile.mkdtemp(prefix="regen-bench-", dir=parent))
        self.rootfs = self.top / "rootfs"
        self.bundle = self.top / "bundle"
        self.store = self.top / "store"
        self.base = [regen, "--root", str(self.top / "run"), "--store", str(self.store)]
        self.count = 0
        self._make_rootfs()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # A worker that still packs has to end before its store goes.
        subprocess.run([*self.base, "ring", "pack"], check=False, capture_output=True)
        shutil.rmtree(self.top)

    def _make_rootfs(self):
        for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
            (self.rootfs / name).mkdir(parents=True)
        shutil.copy(shutil.which("busybox"), self.rootfs / "bin/busybox")
        for applet in ("sh", "true", "echo", "cp", "dd", "sync"):
            (self.rootfs / "bin" / applet).symlink_to("busybox")

    def make_bundle(self, name, arguments):
        """A bundle for every runtime; of a version of the specification that older ones know."""
        bundle = self.top / name
        bundle.mkdir()
        subprocess.run([self.regen, "spec", "--bundle", str(bundle)], check=True)
        config = json.loads((bundle / "config.json").read_text())
        config["ociVersion"] = "1.0.2"
        config["process"].update(args=arguments, terminal=False)
        config["root"].update(path=str(self.rootfs), readonly=False)
        (bundle / "config.json").write_text(json.dumps(config))
        return bundle

    def id(self):
        self.count += 1
        return f"bench-{os.getpid()}-{self.count}"

    def time_regen(self, *arguments):
        return timed([*self.base, *map(str, arguments)])

    def regen_run(self, *arguments):
        """A command whose time does not matter."""
        command = [*self.base, *map(str, arguments)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def ring_state(self, ring):
        return json.loads(self.ring_file(ring).read_text())

    def ring_file(self, ring):
        return self.store / "rings/root" / ring / "ring.json"


def timed(command):
    """Runs a command; it must succeed."""
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDONLY)
    program = shutil.which(command[0])
    actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, write, 1)]
    started = time.monotonic()
    pid = os.posix_spawn(program, command, os.environ, file_actions=actions)
    os.close(write)
    output = os.read(read, 1 << 16)
    first = time.monotonic()
    _, status, usage = os.wait4(pid, 0)
    ended = time.monotonic()
    os.close(read)
    os.close(null)
    if status != 0:
        raise SystemExit(f"{' '.join(command)}: wait status {status}: {output!r}")
    cpu = (usage.ru_utime + usage.ru_stime) * 1e3
    return Run((first - started) * 1e3, (ended - started) * 1e3, usage.ru_maxrss / 1024, ended, cpu)


class EntryWatch:
    """Notes when a new entry can be seen in ring.json: the kernel tells of every file that is moved into place."""

    MOVED_TO = 0x80

    def __init__(self, rig, ring):
        self.rig, self.ring = rig, ring
        self.before = rig.ring_state(ring)["last_seq"]
        self.seen = None
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        directory = os.fsencode(rig.ring_file(ring).parent)
        if self.fd < 0 or libc.inotify_add_watch(self.fd, directory, self.MOVED_TO) < 0:
            raise OSError(ctypes.get_errno(), "watch the ring")
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self):
        while self.seen is None and select.select([self.fd], [], [], 600)[0]:
            now = time.monotonic()
            if b"ring.json" in _names(os.read(self.fd, 65536)):
                if self.rig.ring_state(self.ring)["last_seq"] > self.before:
                    self.seen = now

    def wait(self):
        """The time (of the monotonic clock) at which the entry was there."""
        self.thread.join()
        os.close(self.fd)
        return self.seen


def _names(events):
    names, at = [], 0
    while at < len(events):
        length = struct.unpack_from("iIII", events, at)[3]
        names.append(events[at + 16 : at + 16 + length].rstrip(b"\0"))
        at += 16 + length
    return names
