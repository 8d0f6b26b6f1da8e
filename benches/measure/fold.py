"""What a ring is after many exits, and what it takes to rebuild a layer from its pack."""

import json
import os
import random
import shlex
import shutil
import subprocess
from pathlib import Path

from . import parts
from .report import Series, absolute, ratio
from .rig import timed
from .tree import make_text

EXITS = 200
"""In each round."""
WATCHED = 20
"""One exit in so many is waited for until it is packed."""
WINDOW = 40
STARTS = 40
DEPTH = 8
FILES = 256
PAGE = 4096
MIB = 1 << 20


def fold(rig, rounds):
    """A ring in which many runs have each changed a little, `EXITS` in a round, against one that has seen one."""
    (rig.rootfs / "words").write_bytes(make_text(random.Random(7), 16 * MIB))
    for ring in ("fresh", "worn"):
        _exit(rig, ring, f"i=0; while [ $i -lt {FILES} ]; do {_copy('$i', 64)}; i=$((i + 1)); done", "--wait-pack")
    packed, layers = Series("exit with its packing"), Series("layers under the newest entry", "")
    for number in range(1, EXITS * rounds):
        change = f"{_copy(number * 37 % FILES, 60 + number % 9)}; echo {number} >> /log; echo x > /only-{number % 50}"
        if number % WATCHED == 0:
            packed.add(_exit(rig, "worn", change, "--wait-pack"))
            layers.add(len(rig.ring_state("worn")["entries"][-1]["layers"]))
        else:
            _exit(rig, "worn", change)
    rig.regen_run("ring", "pack")
    start = {ring: Series(f"start, ring that has seen {name}") for ring, name in (("fresh", "one"), ("worn", "all"))}
    for _ in range(STARTS):
        for ring, one in parts.shuffled(start):
            command = ["run", "--rootfs", rig.rootfs, "--ring", ring, rig.id(), "--", "/bin/echo", "x"]
            one.add(rig.time_regen(*command).first)
    first, last = Series("exit with its packing, the first"), Series("exit with its packing, the last")
    first.values, last.values = packed.values[:WINDOW], packed.values[-WINDOW:]
    shown, on_disk = _bytes(rig, "worn")
    fresh_shown, fresh_on_disk = _bytes(rig, "fresh")
    fresh_shown.name, fresh_on_disk.name = "the same, after one exit", "the same on disk"
    most = _one("most layers under an entry", max(layers.values))
    told = [shown, on_disk, fresh_shown, fresh_on_disk, most, _packs(rig), _document(rig)]
    apart = ratio("", on_disk, shown).of_medians / ratio("", fresh_on_disk, fresh_shown).of_medians
    checks = [
        ratio("fold: start after all exits / after one", start["worn"], start["fresh"], 1.2),
        absolute("fold: most layers under an entry", most, DEPTH + 24),
        ratio("fold: bytes on disk / what entries show", on_disk, shown, 1.5),
        absolute("fold: the same / that after one exit", _one("", apart, "x"), 1.5),
        ratio("fold: the last exits / the first", last, first),
    ]
    return [*start.values(), first, last, layers, *told], checks


def _one(name, value, unit=""):
    return Series(name, unit, [value])


def _exit(rig, ring, script, *flags):
    command = ["run", "--rootfs", rig.rootfs, "--ring", ring, "--depth", DEPTH, *flags, rig.id(), "--"]
    return rig.time_regen(*command, "/bin/sh", "-c", script).whole


def _copy(number, pages):
    """Of the words a part that nobody had before: file NUMBER of so many pages."""
    skip = f"$(({number} * 7919 % 3900))"
    return f"dd if=/words of=/file-{number} bs={PAGE} skip={skip} count={pages} 2>/dev/null"


def _packs(rig):
    """How many blobs the newest entry's manifest lists."""
    digest = rig.ring_state("worn")["entries"][-1]["manifest"].removeprefix("sha256:")
    manifest = json.loads((rig.ring_file("worn").parent / "blobs/sha256" / digest).read_text())
    return _one("packs of the newest entry", len(manifest["layers"]))


def _document(rig):
    return _one("ring.json", rig.ring_file("worn").stat().st_size / 1024, "KiB")


def _bytes(rig, ring):
    """What the entries of a ring show of its layers, and what layers, packs and documents take."""
    shown, on_disk, layers = {}, {}, set()
    for entry in rig.ring_state(ring)["entries"]:
        layers.update(entry["layers"])
        _show([rig.store / "layers" / layer / "diff" for layer in reversed(entry["layers"])], shown)
    for top in [rig.ring_file(ring).parent, *(rig.store / "layers" / layer for layer in layers)]:
        for parent, directories, files in os.walk(top):
            for name in [*directories, *files]:
                _note(Path(parent) / name, on_disk)
    names = ("what the entries show of layers", shown), ("what the ring takes on disk", on_disk)
    return [_one(name, sum(found.values()) / MIB, "MiB") for name, found in names]


def _show(directories, shown):
    """Adds what directories, uppermost first, show together."""
    names = {}
    for directory in directories:
        _note(directory, shown)
        for child in os.scandir(directory):
            names.setdefault(child.name, []).append(child)
    for found in names.values():
        if not found[0].is_dir(follow_symlinks=False):
            # A whiteout takes nothing.
            _note(found[0].path, shown)
            continue
        inner = []
        for child in found:
            if not child.is_dir(follow_symlinks=False):
                break
            inner.append(Path(child.path))
        _show(inner, shown)


def _note(path, found):
    status = os.stat(path, follow_symlinks=False)
    found[status.st_ino] = status.st_blocks * 512


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
    source, place = shlex.quote(str(blob)), shlex.quote(str(target))
    peer_command = f"zstd -dcq {source} | tar -x -C {place} && sync -f {place}"

    def run_ours():
        shutil.rmtree(rig.store / "layers" / layer)
        subprocess.run(["sync"], check=True)
        ours.add(rig.time_regen("run", "--rootfs", rig.rootfs, "--ring", name, rig.id(), "--", "/bin/true").whole)

    def run_peer():
        target.mkdir()
        subprocess.run(["sync"], check=True)
        peer.add(timed(["bash", "-c", peer_command]).whole)
        shutil.rmtree(target)

    for _ in range(rounds):
        for _, run in parts.shuffled({"ours": run_ours, "peer": run_peer}):
            run()
    return [ours, peer], [ratio("rebuild: from its pack / zstd -dc | tar -x", ours, peer, 0.8)]
