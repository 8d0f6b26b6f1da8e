"""What a runtime costs beside `run`: the short verbs, its memory, and many containers at once."""

import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .parts import shuffled
from .report import Series, absolute, ratio
from .rig import timed


def peers(rig):
    commands = {"regen": rig.base}
    for peer in ("runc", "crun"):
        if shutil.which(peer):
            commands[peer] = [peer, "--root", str(rig.top / peer)]
    return commands


def verbs(rig, rounds):
    """'state' and 'delete' of a container that has ended, and 'kill' of one that runs."""
    commands = peers(rig)
    bundle = str(rig.make_bundle("sleeps", ["/bin/busybox", "sleep", "1000"]))
    steps = {"kill": ["KILL"], "state": [], "delete": []}
    series = {(name, verb): Series(f"{name} {verb}") for verb in steps for name in commands}
    for _ in range(rounds):
        ids = {name: rig.id() for name in commands}
        for name, command in commands.items():
            _quiet([*command, "create", "--bundle", bundle, ids[name]])
            _quiet([*command, "start", ids[name]])
        for verb, more in steps.items():
            for name, command in shuffled(commands):
                series[name, verb].add(timed([*command, verb, ids[name], *more]).whole)
            # What was killed takes a moment to be dead for everybody.
            time.sleep(0.03)
    checks = [
        ratio(f"{verb}: regen / {peer}", series["regen", verb], series[peer, verb], 1.0)
        for verb in steps
        for peer in commands
        if peer != "regen"
    ]
    return list(series.values()), checks


def memory(rig, rounds):
    """The most memory that 'run' has had by the time at which its container runs, which is nearly all it does."""
    commands = peers(rig)
    bundle = str(rig.make_bundle("waits", ["/bin/busybox", "sleep", "1000"]))
    series = {name: Series(f"{name} run: peak memory", "MiB") for name in commands}
    for _ in range(rounds):
        for name, command in shuffled(commands):
            container = rig.id()
            run = subprocess.Popen([*command, "run", "--bundle", bundle, container], stdin=subprocess.DEVNULL)
            _await_running([*command, "state", container])
            series[name].add(_peak_mib(run.pid))
            _quiet([*command, "kill", container, "KILL"])
            run.wait()
    checks = [absolute("run: peak memory", series["regen"], 10.0)]
    if "runc" in commands:
        checks.append(ratio("run: peak memory: regen / runc", series["regen"], series["runc"], 0.6))
    return list(series.values()), checks


def crowd(rig, rounds):
    """Containers one after the other against two at a time, and then eight at a time, none of which may hang."""
    bundle = str(rig.make_bundle("crowd", ["/bin/true"]))
    one, two, eight = (Series(f"per container, {n} at a time") for n in ("one", "two", "eight"))
    for _ in range(rounds):
        for series, workers, count in ((one, 1, 100), (two, 2, 100), (eight, 8, 500)):
            series.add(_per_container(rig, bundle, workers, count))
    return [one, two, eight], [ratio("two at a time / one at a time", two, one, 1.0)]


def _per_container(rig, bundle, workers, count):
    ids = [rig.id() for _ in range(count)]
    started = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        for done in pool.map(lambda container: _quiet([*rig.base, "run", "--bundle", bundle, container]), ids):
            assert done is None
    return (time.monotonic() - started) * 1e3 / count


def _quiet(command):
    """A command that must end well within a minute."""
    where = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    subprocess.run(command, check=True, timeout=60, **where)


def _await_running(command):
    for _ in range(2000):
        shown = subprocess.run(command, check=False, capture_output=True, text=True)
        if '"running"' in shown.stdout:
            return
        time.sleep(0.005)
    raise SystemExit(f"{' '.join(command)}: it never ran")


def _peak_mib(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) / 1024
