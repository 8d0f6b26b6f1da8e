"""What it takes to rebuild a layer from its pack."""

import shlex
import shutil
import subprocess

from . import parts
from .report import Series, ratio
from .rig import timed


def rebuild(rig, rounds):
    """A run whose layer of 2 GiB was lost and is rebuilt from its pack, against zstd and tar."""
    name = "lost"
    rig.regen_run("run", "--rootfs", rig.rootfs, "--ring", name, rig.id(), "--", "/bin/sh", "-c", "cp -a /src /data")
    rig.regen_run("ring", "pack")
    record = rig.ring_state(name)
    (layer,) = record["layers"]
    digest = record["layers"][layer]["packs"][0]["digest"].removeprefix("sha256:")
    blob, target = rig.ring_file(name).parent / "blobs/sha256" / digest, rig.top / "peer"
    ours, peer = Series("run on a layer that is rebuilt"), Series("zstd -dc | tar -x, flushed")
    ours_cpu, peer_cpu = Series("the first: processor time"), Series("the second: processor time")
    source, place = shlex.quote(str(blob)), shlex.quote(str(target))
    peer_command = f"zstd -dcq {source} | tar -x -C {place} && sync -f {place}"

    def run_ours():
        shutil.rmtree(rig.store / "layers" / layer)
        subprocess.run(["sync"], check=True)
        run = rig.time_regen("run", "--rootfs", rig.rootfs, "--ring", name, rig.id(), "--", "/bin/true")
        ours.add(run.whole)
        ours_cpu.add(run.cpu)

    def run_peer():
        target.mkdir()
        subprocess.run(["sync"], check=True)
        run = timed(["bash", "-c", peer_command])
        peer.add(run.whole)
        peer_cpu.add(run.cpu)
        shutil.rmtree(target)

    for _ in range(rounds):
        for _, run in parts.shuffled({"ours": run_ours, "peer": run_peer}):
            run()
    checks = [
        ratio("rebuild: from its pack / zstd -dc | tar -x", ours, peer, 0.8),
        ratio("rebuild: the same, processor time", ours_cpu, peer_cpu, 0.8),
    ]
    return [ours, peer, ours_cpu, peer_cpu], checks
