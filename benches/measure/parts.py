"""The parts of the benchmark. What is compared is measured in turns, so that noise hits all alike, and in an order that
changes: after a pause the kernel moves a process into a cgroup much more slowly than soon after another move."""

import multiprocessing
import random
import shlex
import shutil
import subprocess
import time

from .report import Series, absolute, difference, ratio
from .rig import EntryWatch, timed
from .tree import PARTS, fill

CHAIN = "chain"
MIB = 1 << 20


def oci(rig, rounds):
    """'run' of /bin/true in one plain bundle, against the runtimes that are installed."""
    bundle = str(rig.make_bundle("plain", ["/bin/true"]))
    commands = {"regen": rig.base}
    for peer in ("runc", "crun"):
        if shutil.which(peer):
            commands[peer] = [peer, "--root", str(rig.top / peer)]
    series = {name: Series(f"{name} run /bin/true") for name in commands}
    versions = {name: Series(f"{name} --version") for name in commands}
    for _ in range(rounds):
        for name, command in shuffled(commands):
            series[name].add(timed([*command, "run", "--bundle", bundle, rig.id()]).whole)
            versions[name].add(timed([command[0], "--version"]).whole)
    limits = {"runc": 1.0, "crun": 1.0}
    checks = [
        ratio(f"run /bin/true: regen / {peer}", series["regen"], series[peer], limits[peer])
        for peer in commands
        if peer != "regen"
    ]
    return [*series.values(), *versions.values()], checks


def start(rig, rounds):
    """'run' on a chain of eight entries that hold 2 GiB, against 'run' without a ring."""
    make_chain(rig)
    bundle = rig.make_bundle("hello", ["/bin/echo", "hello"])
    ways = {
        "plain bundle": ["run", "--bundle", bundle],
        "rootfs without a ring": ["run", "--rootfs", rig.rootfs],
        "ring of 8 entries, 2 GiB": ["run", "--bundle", bundle, "--ring", CHAIN],
    }
    first = {name: Series(f"start, {name}: to the program's first output") for name in ways}
    whole = {name: Series(f"start, {name}: to the return of 'run'") for name in ways}
    for _ in range(rounds):
        for name, arguments in shuffled(ways):
            command = [] if "--bundle" in arguments else ["--", "/bin/echo", "hello"]
            run = rig.time_regen(*arguments, rig.id(), *command)
            first[name].add(run.first)
            whole[name].add(run.whole)
    plain, scratch, ring = ways
    checks = [
        ratio("start: ring of 8 entries / plain bundle", first[ring], first[plain], 1.15),
        ratio("start: ring of 8 entries / rootfs without a ring", first[ring], first[scratch]),
        ratio("whole run: ring of 8 entries / plain bundle", whole[ring], whole[plain]),
    ]
    return [*first.values(), *whole.values()], checks


def make_chain(rig):
    """A ring in which each of eight entries added an eighth of the data; once."""
    if rig.ring_file(CHAIN).exists():
        return
    for part in range(PARTS):
        copy = f"cp -a /src/part-{part} /data-{part}"
        rig.regen_run("run", "--rootfs", rig.rootfs, "--ring", CHAIN, rig.id(), "--", "/bin/sh", "-c", copy)
    rig.regen_run("ring", "pack")
    subprocess.run(["sync"], check=True)


def rollback(rig, rounds):
    """'ring rollback' on a ring with one small entry and on the chain, beyond the start of the process."""
    make_chain(rig)
    for name in ("a", "b"):
        write = f"echo {name} > /file"
        rig.regen_run("run", "--rootfs", rig.rootfs, "--ring", "small", rig.id(), "--", "/bin/sh", "-c", write)
    rig.regen_run("ring", "pack")
    version = Series("regen --version")
    series = {ring: Series(f"rollback, {name}") for ring, name in (("small", "2 files"), (CHAIN, "2 GiB"))}
    for round_ in range(rounds):
        version.add(timed([rig.regen, "--version"]).whole)
        for ring, one in series.items():
            to = "@-1" if round_ % 2 == 0 else "@latest"
            one.add(rig.time_regen("ring", "rollback", ring, "--to", to).whole)
    for ring in series:
        rig.regen_run("ring", "rollback", ring, "--to", "@latest")
    beyond = [difference(f"{one.name}: beyond process start", one, version, 3.0) for one in series.values()]
    return [version, *series.values()], beyond


SEALS = {"1 file": "echo $$ > /file", "20,000 files, 2 GiB": "cp -a /src /data"}


def seal(rig, rounds):
    """From the end of the program to an entry in the ring, and to the return of 'delete' and of 'run'."""
    bundle = rig.make_bundle("ends", ["/bin/true"])
    plain = Series("delete, no ring")
    delete = {size: Series(f"delete, {size}") for size in SEALS}
    unflushed = {size: Series(f"delete, {size}, its data not flushed before") for size in SEALS}
    visible = {size: Series(f"end of program to entry visible, {size}") for size in SEALS}
    back = {size: Series(f"end of program to return of 'run', {size}") for size in SEALS}
    for round_ in range(rounds):
        for size, command in SEALS.items():
            plain.add(_time_plain_delete(rig, bundle))
            delete[size].add(_time_delete(rig, command, flush=True))
            _time_run(rig, command, visible[size], back[size])
            if round_ % 3 == 0:
                unflushed[size].add(_time_delete(rig, command, flush=False))
    small, big = (delete[size] for size in SEALS)
    checks = [
        *(absolute(f"seal: {one.name}", one, 10.0) for one in (small, big)),
        *(difference(f"seal: {one.name} beyond delete without a ring", one, plain) for one in (small, big)),
        *(absolute(f"seal: {one.name}", one, 10.0) for one in visible.values()),
        ratio("seal: delete, 2 GiB / 1 file", big, small, 1.5),
    ]
    return [plain, *delete.values(), *unflushed.values(), *visible.values(), *back.values()], checks


def _time_plain_delete(rig, bundle):
    container = rig.id()
    rig.regen_run("run", "--keep", "--bundle", bundle, container)
    return rig.time_regen("delete", container).whole


def _time_delete(rig, command, flush):
    container = rig.id()
    rig.regen_run(*_on_ring(rig), "--keep", container, "--", "/bin/sh", "-c", command)
    if flush:
        subprocess.run(["sync"], check=True)
    run = rig.time_regen("delete", container)
    rig.regen_run("ring", "pack")
    return run.whole


def _time_run(rig, command, visible, back):
    watch = EntryWatch(rig, "sealed")
    run = rig.time_regen(*_on_ring(rig), rig.id(), "--", "/bin/sh", "-c", f"{command}; sync; echo end")
    ended = run.ended - (run.whole - run.first) / 1e3
    visible.add((watch.wait() - ended) * 1e3)
    back.add(run.whole - run.first)
    rig.regen_run("ring", "pack")


def _on_ring(rig):
    return ["run", "--rootfs", rig.rootfs, "--ring", "sealed@base", "--depth", "2"]


def pack(rig, rounds):
    """'ring pack' of 2 GiB against tar and zstd with both streams hashed."""
    full = rig.top / "full.toml"
    # With this floor the worker that follows a seal packs nothing, and leaves it to us.
    full.write_text('[store]\nmin-free = "100%"\n')
    peer, flushed = Series("tar | zstd -1 -T2, both hashed"), Series("the same, its blob flushed")
    ours, peak = Series("ring pack"), Series("ring pack: peak memory", "MiB")
    blob = rig.top / "peer.blob"
    source, target = shlex.quote(str(rig.rootfs / "src")), shlex.quote(str(blob))
    hashed = [f"tee >(sha256sum >{target}.{stream})" for stream in ("tar", "zst")]
    pipe = f"tar -C {source} -c . | {hashed[0]} | zstd -1 -T2 -q | {hashed[1]} >{target}; wait"
    for _ in range(rounds):
        rig.regen_run("--config", full, *_on_ring(rig), rig.id(), "--", "/bin/sh", "-c", "cp -a /src/. /")
        subprocess.run(["sync"], check=True)
        # The worker has seen by now that it must not pack.
        time.sleep(0.5)
        run = rig.time_regen("ring", "pack")
        ours.add(run.whole)
        peak.add(run.peak_mib)
        subprocess.run(["sync"], check=True)
        run = timed(["bash", "-o", "pipefail", "-c", pipe])
        peer.add(run.whole)
        flushed.add(run.whole + timed(["sync", str(blob)]).whole)
        blob.unlink()
    checks = [
        ratio("pack: ring pack / tar | zstd", ours, peer, 0.8),
        ratio("pack: ring pack / tar | zstd and flushed, as a pack is", ours, flushed),
        absolute("pack: peak memory", peak, 64.0),
    ]
    return [peer, flushed, ours, peak], checks


def shuffled(choices):
    items = list(choices.items())
    random.shuffle(items)
    return items


def make_data(rig):
    """The 2 GiB that containers copy."""
    # Not in this process: the kernel counts its peak of memory as that of every command it starts.
    maker = multiprocessing.Process(target=fill, args=[rig.rootfs / "src"])
    maker.start()
    maker.join()
    if maker.exitcode != 0:
        raise SystemExit("the data could not be made")
    subprocess.run(["sync"], check=True)
