"""regen's side of `hot-restart`: a daemon of the benchmark's own, and services in it."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

VERSION = "1.0.0"
# The half of all starts that end before they are ready: a new root file system leaves nothing else to choose by.
HALF = 'case $(cat /proc/sys/kernel/random/uuid) in [0-7]*) exit 1;; esac; exec "$@"'


class Daemon:
    """`regen serve`, as long as the value is in use."""

    def __init__(self, rig, *options):
        self.rig = rig
        self.log = rig.top / "serve.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen([*rig.base, "serve", *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while self.regen("service", "ls", "--json").returncode:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"regen serve: {self.log.read_text()}")
            time.sleep(0.02)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)

    def socket(self):
        return self.rig.top / "run/run.regen.Control"

    def regen(self, *arguments):
        command = [*self.rig.base, *map(str, arguments)]
        return subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    def must(self, *arguments):
        done = self.regen(*arguments)
        if done.returncode:
            raise SystemExit(f"regen {' '.join(map(str, arguments))}: {done.stderr}{self.log.read_text()[-2000:]}")
        return done.stdout


class Service:
    """A program as a service, that is asked like a peer."""

    def __init__(self, daemon, program, root, wrapper=None, options=()):
        self.daemon, self.program, self.root, self.options = daemon, program, root, options
        self.name = f"s{program.port}" + ("-half" if wrapper else "")
        self.title = program.title + (", half of the starts crash" if wrapper else "")
        self.wrapper = ["/bin/sh", "-c", wrapper, "sh"] if wrapper else []
        self.rate, self.speaks, self.port = program.rate, program.speaks, program.port
        self.refused = 0

    def start(self):
        program = self.program
        listen = f"tcp://127.0.0.1:{program.port}"
        add = ["service", "add", self.name, "--version", VERSION, "--listen", listen, "--rootfs", self.root]
        add += ["--handover", program.handover, "--ready", program.ready, "--stop-signal", program.stop_signal]
        add += [*self.options, "--", *self.wrapper, *program.command]
        # Half of the starts may crash, and the first one is a start.
        for _ in range(50 if self.wrapper else 1):
            done = self.daemon.regen(*add)
            if done.returncode == 0:
                return
            self.daemon.regen("service", "rm", self.name)
        raise SystemExit(f"regen {' '.join(map(str, add))}: {done.stderr}{self.daemon.log.read_text()[-2000:]}")

    def restart(self):
        done = self.daemon.regen("service", "restart", self.name)
        if done.returncode:
            self.refused += 1
            if not self.wrapper:
                print(f"{self.title}: {done.stderr}", flush=True)

    def stop(self):
        self.daemon.must("service", "rm", self.name)

    def keeper(self):
        """The pid of the keeper of the instance that serves, which is shown first."""
        service = json.loads(self.daemon.must("service", "show", self.name, "--json"))
        return service["instances"][0]["keeper"]


def private_kib(pid):
    """What a process has that nobody else has."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def resident_kib(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (resident,) = (line.split()[1] for line in lines if line.startswith("VmRSS:"))
    return int(resident)


def wake_ups(pid):
    """How often any of its threads has been put to sleep of its own will, and so has woken up."""
    count = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        lines = Path(f"/proc/{pid}/task/{thread}/status").read_text().splitlines()
        count += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))
    return count
