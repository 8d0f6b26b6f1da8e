"""What of a large ring goes over the line after a run that changed little, against skopeo."""

import json
import socket
import subprocess
import time
from contextlib import contextmanager

from . import parts
from .report import Series, absolute, ratio
from .rig import timed

RING = "sent"
ADDED = 10
MIB = 1 << 20
# So many exits of a ring that keeps so few entries are folded more than once.
EXITS = 24
KEPT = 2


def push(rig, rounds):
    """A ring of 2 GiB gets 10 MiB more with each run, and goes to a registry of Debian's on the same machine."""
    _run(rig, "cp -a /src /data")
    first, again = Series("first push, 2 GiB"), Series("push after a run that added 10 MiB")
    peer, moved = Series("skopeo copy of the same"), Series("bytes moved by it", "MiB")
    with _registry(rig) as host:
        ours, theirs = f"docker://{host}/ours", f"docker://{host}/theirs"
        first.add(_push(rig, ours)[0])
        _copy(rig, theirs)
        for number in range(rounds):
            _run(rig, f"dd if=/dev/urandom of=/more-{number % 3} bs=1M count={ADDED} 2>/dev/null")
            for name, _ in parts.shuffled({"ours": None, "peer": None}):
                if name == "peer":
                    peer.add(_copy(rig, theirs).whole)
                    continue
                whole, sent = _push(rig, ours)
                again.add(whole)
                moved.add(sent / MIB)
        folded = _after_folds(rig, ours, rounds)
    checks = [
        absolute("push: MiB moved after 10 MiB more", Series("", "MiB", [max(moved.values)]), 11.0),
        absolute("push: MiB moved after 10 MiB more, after folds", Series("", "MiB", [max(folded.values)]), 11.0),
        ratio("push: regen / skopeo copy", again, peer),
    ]
    return [first, again, peer, moved, folded], checks


def _after_folds(rig, reference, rounds):
    """The same in a ring that was used for long: what was left by runs whose entries are gone is one layer by now."""
    moved = Series("bytes moved by it, after folds", "MiB")
    subprocess.run([*rig.base, "ring", "set", RING, "--depth", str(KEPT)], check=True, stdout=subprocess.DEVNULL)
    for _ in range(rounds):
        for number in range(EXITS):
            _run(rig, f"dd if=/dev/urandom of=/small-{number} bs=100k count=1 2>/dev/null")
        layers = len(rig.ring_state(RING)["entries"][-1]["layers"])
        if layers >= EXITS:
            raise SystemExit(f"push: nothing was folded: {layers} layers after {EXITS} exits")
        _push(rig, reference)
        _run(rig, f"dd if=/dev/urandom of=/more-0 bs=1M count={ADDED} 2>/dev/null")
        moved.add(_push(rig, reference)[1] / MIB)
    return moved


def _run(rig, script):
    flags = ["--ring", RING, "--wait-pack"]
    rig.regen_run("run", "--rootfs", rig.rootfs, *flags, rig.id(), "--", "/bin/sh", "-c", script)


def _push(rig, reference):
    """Milliseconds, and the bytes of the blobs that were sent."""
    started = time.monotonic()
    command = [*rig.base, "ring", "push", RING, reference, "--tls-verify=false", "--json"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return (time.monotonic() - started) * 1e3, json.loads(told)["sent_bytes"]


def _copy(rig, reference):
    tag = rig.ring_state(RING)["entries"][-1]["id"]
    source = f"oci:{rig.ring_file(RING).parent}:{tag}"
    return timed(["skopeo", "copy", "--quiet", "--dest-tls-verify=false", source, f"{reference}:{tag}"])


@contextmanager
def _registry(rig):
    """Debian's registry, on a port of its own, as long as it is needed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config = rig.top / "registry.yml"
    data = rig.top / "registry"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {data}}}}}\nhttp: {{addr: '{host}'}}\n"
    )
    null = subprocess.DEVNULL
    child = subprocess.Popen(["docker-registry", "serve", str(config)], stdin=null, stdout=null, stderr=null)
    try:
        _wait_for(host)
        yield host
    finally:
        child.kill()
        child.wait()


def _wait_for(host):
    address, port = host.split(":")
    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex((address, int(port))) == 0:
                return
        time.sleep(0.02)
    raise SystemExit("docker-registry does not answer")
