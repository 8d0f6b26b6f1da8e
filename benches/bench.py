"""Measures regen beside its peers; `hack/bench` is the way to call it. Nothing here is a test: machines differ."""

import argparse
import os
import platform
import subprocess
from pathlib import Path

from measure import commit, fold, fork, look, ops, parts, pod, push, rebuild, report, restart, runtime, snapshot, warm
from measure.rig import Rig

# The rounds of each part, and whether it needs the large tree.
PARTS = {
    "oci": (parts.oci, 80, False),
    "verbs": (runtime.verbs, 40, False),
    "memory": (runtime.memory, 10, False),
    "crowd": (runtime.crowd, 4, False),
    "start": (parts.start, 80, True),
    "rollback": (parts.rollback, 40, True),
    "seal": (parts.seal, 9, True),
    "commit": (commit.commit, 5, True),
    "pack": (parts.pack, 5, True),
    "fold": (fold.fold, 5, False),
    "rebuild": (rebuild.rebuild, 3, True),
    "fork": (fork.fork, 1000, True),
    "look": (look.look, 3, True),
    "snapshot": (snapshot.snapshot, 7, True),
    "push": (push.push, 12, True),
    "pod": (pod.pod, 40, False),
    "hot-restart": (restart.hot_restart, 3, False),
    "warm": (warm.warm, 40, False),
    "ops": (ops.ops, 40, False),
}


def main():
    arguments = parse()
    machine = describe(arguments.directory)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    series, checks = [], []
    with Rig(arguments.regen, arguments.directory, arguments.seconds or (4 if arguments.quick else 60)) as rig:
        if any(PARTS[name][2] for name in arguments.parts):
            parts.make_data(rig)
        for name in arguments.parts:
            measure, rounds, _ = PARTS[name]
            print(f"{name}: load {os.getloadavg()[0]:.2f}", flush=True)
            measured, compared = measure(rig, arguments.rounds or (1 if arguments.quick else rounds))
            series += measured
            checks += compared
    machine["load at the end"] = round(os.getloadavg()[0], 2)
    report.show(series, checks)
    if arguments.json:
        report.write(arguments.json, machine, series, checks)


def parse():
    parser = argparse.ArgumentParser(prog="hack/bench", description="Measures regen beside its peers.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all, if none is named")
    parser.add_argument("--regen", default="target/release/regen", help="the binary to measure")
    parser.add_argument("--rounds", type=int, help="how often, instead of what suits each part")
    parser.add_argument("--seconds", type=float, help="of restarts, for each service of 'hot-restart' [default: 60]")
    parser.add_argument("--quick", action="store_true", help="one short round: whether it works, not how fast it is")
    parser.add_argument("--directory", default="/var/tmp", help="where to work; 12 GB on a disk's file system")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write every value")
    arguments = parser.parse_args()
    for name in arguments.parts:
        if name not in PARTS:
            parser.error(f"no such part: {name}")
    arguments.parts = arguments.parts or list(PARTS)
    return arguments


def describe(directory):
    find = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", directory]
    file_system = subprocess.run(find, check=True, capture_output=True, text=True)
    return {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "file system": file_system.stdout.strip(),
        "load": round(os.getloadavg()[0], 2),
    }


main()
