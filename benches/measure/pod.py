"""What Kubernetes waits for: pods and containers through containerd, and the end of one while another's is packed."""

import json
import shutil
import subprocess
import time

from .kubelet import Kubelet
from .parts import shuffled
from .report import Series, absolute, ratio
from .rig import timed

RING = {"run.regen.ring": "pod"}


def pod(rig, rounds):
    """A pod and a container in it from kubelet's request to the answer, and their end, against other runtimes."""
    # containerd gives its runtime flags for root and log, but none for the store.
    script = rig.top / "regen"
    script.write_text(f'#!/bin/sh\nexec {rig.regen} --store {rig.store} "$@"\n')
    script.chmod(0o755)
    runtimes = {"regen": script} | {name: shutil.which(name) for name in ("runc", "crun") if shutil.which(name)}
    ways = {name: (name, {}) for name in runtimes} | {"regen, in a ring": ("regen", RING)}
    steps = {name: [Series(f"pod, {name}: {step}") for step in ("sandbox", "container", "end")] for name in ways}
    with Kubelet(rig, runtimes) as kubelet:
        for _ in range(rounds):
            for name, (runtime, annotations) in shuffled(ways):
                for series, value in zip(steps[name], _time_pod(kubelet, runtime, annotations), strict=True):
                    series.add(value)
    checks = [
        ratio(f"{ours.name} / {peer}", ours, theirs, 1.0 if peer == "runc" else None)
        for peer in runtimes
        if peer != "regen"
        for ours, theirs in zip(steps["regen"], steps[peer], strict=True)
    ]
    delete = _time_delete_while_packing(rig)
    checks.append(absolute(f"pod: {delete.name}", delete, 100.0))
    return [*(one for series in steps.values() for one in series), delete], checks


def _time_pod(kubelet, runtime, annotations):
    pod = kubelet.pod(runtime, annotations)
    times = [time.monotonic()]
    sandbox = kubelet.run_pod(pod)
    times.append(time.monotonic())
    kubelet.run_container(sandbox, pod, ["/bin/sh", "-c", "echo $$ >/state; exec sleep infinity"])
    times.append(time.monotonic())
    kubelet.remove(sandbox)
    times.append(time.monotonic())
    return [(after - before) * 1e3 for before, after in zip(times, times[1:], strict=False)]


def _time_delete_while_packing(rig):
    """'delete' of a container that has written 2 GiB, as containerd calls it; its pack takes seconds."""
    series = Series("delete of a container that wrote 2 GiB, which are packed after it")
    for _ in range(3):
        container = rig.id()
        write = "dd if=/dev/urandom of=/large bs=1M count=2048 2>/dev/null"
        on_ring = ["--rootfs", rig.rootfs, "--ring", "large@base", "--depth", "1"]
        rig.regen_run("run", *on_ring, "--keep", container, "--", "/bin/sh", "-c", write)
        series.add(timed([*rig.base, "delete", container]).whole)
        log = subprocess.run([*rig.base, "ring", "log", "large", "--json"], check=True, capture_output=True)
        if json.loads(log.stdout)[0]["state"] != "sealed":
            raise SystemExit("2 GiB were packed before 'delete' was back")
        rig.regen_run("ring", "pack")
    return series
