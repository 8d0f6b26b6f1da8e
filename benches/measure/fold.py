"""What a ring is after many exits."""

import json
import os
import random
from pathlib import Path

from . import parts
from .report import Series, absolute, ratio
from .tree import make_text

EXITS = 200
"""In each round."""
WATCHED = 10
"""One exit in so many is waited for until it is packed; then the ring is looked at."""
MOMENTS = (1, 100, 1000, 10000)
"""After so many exits starts are compared, and at the end."""
WINDOW = 10
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
    exits, seen, starts = EXITS * rounds, _Seen(rig), {}
    packed, number = Series("exit with its packing"), 0
    try:
        for number in range(1, exits):
            if number in MOMENTS:
                starts[number] = _starts(rig, number)
            _wear(rig, number, packed, seen)
    except KeyboardInterrupt:
        # It takes long: what was seen so far is worth its numbers.
        print(f"ended after {number} exits", flush=True)
    starts[number + 1] = _starts(rig, number + 1)
    first, last = Series("exit with its packing, the first"), Series("exit with its packing, the last")
    first.values, last.values = packed.values[:WINDOW], packed.values[-WINDOW:]
    fresh = _Seen(rig)
    fresh.look("fresh")
    checks = [
        *(ratio(f"fold: start after {number} exits / after one", *pair, 1.2) for number, pair in starts.items()),
        absolute("fold: most layers under an entry", _one("", max(seen.layers.values)), DEPTH + 24),
        absolute("fold: most packs of an entry", _one("", max(seen.packs.values)), 100),
        absolute("fold: bytes on disk / what entries show", seen.share, 1.5),
        absolute("fold: the same at the worst moment", _one("", max(seen.share.values), "x"), 1.5),
        ratio("fold: the same / that after one exit", seen.share, fresh.share, 1.5),
        ratio("fold: the last exits / the first", last, first),
    ]
    measured = [*(one for pair in starts.values() for one in pair), first, last, *seen.series()]
    return [*measured, _one("bytes on disk / what entries show, after one exit", fresh.share.median, "x")], checks


def _wear(rig, number, packed, seen):
    change = f"{_copy(number * 37 % FILES, 60 + number % 9)}; echo {number} >> /log; echo x > /only-{number % 50}"
    if number % WATCHED == 0:
        packed.add(_exit(rig, "worn", change, "--wait-pack"))
        seen.look("worn")
    else:
        _exit(rig, "worn", change)


def _starts(rig, number):
    """The times of starts on the ring that has seen so many exits, and in turns with them on the other."""
    rig.regen_run("ring", "pack")
    pair = {"worn": Series(f"start, ring that has seen {number} exits"), "fresh": Series(f"beside them, one exit ({number})")}
    for _ in range(STARTS):
        for ring, one in parts.shuffled(pair):
            command = ["run", "--rootfs", rig.rootfs, "--ring", ring, rig.id(), "--", "/bin/echo", "x"]
            one.add(rig.time_regen(*command).first)
    return tuple(pair.values())


def _one(name, value, unit=""):
    return Series(name, unit, [value])


def _exit(rig, ring, script, *flags):
    command = ["run", "--rootfs", rig.rootfs, "--ring", ring, "--depth", DEPTH, *flags, rig.id(), "--"]
    return rig.time_regen(*command, "/bin/sh", "-c", script).whole


def _copy(number, pages):
    """Of the words a part that nobody had before: file NUMBER of so many pages."""
    skip = f"$(({number} * 7919 % 3900))"
    return f"dd if=/words of=/file-{number} bs={PAGE} skip={skip} count={pages} 2>/dev/null"


class _Seen:
    """What a ring was at each moment at which it was looked at; nobody was at work in it."""

    def __init__(self, rig):
        self.rig = rig
        self.share = Series("bytes on disk / what entries show", "x")
        self.layers, self.packs = Series("layers under the newest entry", ""), Series("packs of the newest entry", "")
        self.document = Series("ring.json", "KiB")
        # Each as a part of what the entries show.
        self.hidden = Series("on disk: files that no entry shows", "x")
        self.current = Series("on disk: packs of the newest entry", "x")
        self.former = Series("on disk: packs of other entries only", "x")

    def series(self):
        most = [_one(f"{one.name}, most", max(one.values), one.unit) for one in self._all()]
        return [*self._all(), *most]

    def _all(self):
        return [self.share, self.hidden, self.current, self.former, self.layers, self.packs, self.document]

    def look(self, ring):
        file = self.rig.ring_file(ring)
        state = json.loads(file.read_text())
        shown, held, layers = {}, {}, set()
        for entry in state["entries"]:
            directories = [self.rig.store / "layers" / layer / "diff" for layer in reversed(entry["layers"])]
            layers.update(directories)
            _show(directories, shown)
        for directory in layers:
            _note_all(directory.parent, held)
        blobs = file.parent / "blobs/sha256"
        newest = state["entries"][-1]
        manifest = json.loads((blobs / newest["manifest"].removeprefix("sha256:")).read_text())
        packs = {layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]}
        current, documents = {}, {}
        for blob in packs:
            _note(blobs / blob, current)
        _note_all(file.parent, documents)
        total = sum(shown.values())
        self.share.add(sum((held | documents).values()) / total)
        self.hidden.add((sum(held.values()) - total) / total)
        self.current.add(sum(current.values()) / total)
        self.former.add((sum(documents.values()) - sum(current.values())) / total)
        self.layers.add(len(newest["layers"]))
        self.packs.add(len(manifest["layers"]))
        self.document.add(file.stat().st_size / 1024)


def _note_all(top, found):
    for parent, directories, files in os.walk(top):
        for name in [*directories, *files]:
            _note(Path(parent) / name, found)


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
