"""Clones of warm templates beside plain forks of the same programs and cold starts by other runtimes."""

import json
import os
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from .parts import shuffled
from .report import Check, Series, absolute, ratio
from .rig import timed
from .runtime import peers
from .service import Daemon
from .template import Plain, Template, first_line, shares

HERE = Path(__file__).parent
ZYGOTE = HERE.parents[1] / "zygote"
IMPORTS = "json,ssl,http.server,sqlite3,asyncio,email"
PYTHON = ["/usr/bin/python3", "-c", "print('x', flush=True)"]
STAY = ["/usr/bin/python3", "-c", "import time; print('x', flush=True); time.sleep(1000)"]
EVENT = '{"name": "world"}'
FUNCTION = "def handle(event):\n    return {'hello': event['name']}\n"
POOL = 8
REQUESTERS = 4
IDLE = 16


def warm(rig, rounds):
    """Everything in turns, one clone at a time, from a pool that is full; then as many as there can be."""
    root = rig.top / "warm"
    _make_root(root)
    function = rig.top / "function"
    function.mkdir()
    (function / "handler.py").write_text(FUNCTION)
    with Daemon(rig) as daemon, _no_templates_after(daemon):
        tables = [
            _latency(rig, daemon, root, function, rounds, "python", IMPORTS),
            _latency(rig, daemon, root, function, max(rounds // 4, 1), "numpy", "numpy"),
            _under_engine(rig, daemon, root, max(rounds // 4, 1)),
            _memory(rig, daemon, root),
            _rate(rig, daemon, root),
        ]
    return [one for series, _ in tables for one in series], [one for _, checks in tables for one in checks]


@contextmanager
def _no_templates_after(daemon):
    """They outlive their daemon, and so what went wrong."""
    try:
        yield
    finally:
        for template in json.loads(daemon.must("template", "ls", "--json")):
            daemon.must("template", "rm", "--force", template["name"])


def _make_root(root):
    packages = "python3,python3-numpy"
    subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", "bookworm", root], check=True)
    compile = ["cc", "-O2", "-static", f"-I{ZYGOTE}/c", HERE / "warm.c", ZYGOTE / "c/regen_zygote.c"]
    subprocess.run([*compile, "-o", root / "bin/warm"], check=True)
    shutil.copytree(ZYGOTE / "python/regen_zygote", root / "opt/regen/regen_zygote")


def _zygote(imports):
    return ["/usr/bin/python3", "-m", "regen_zygote", "--import", imports]


def _plain(root, imports):
    return Plain(root, _zygote(imports), {"PYTHONPATH": "/opt/regen", "PATH": "/usr/bin:/bin"})


def _latency(rig, daemon, root, function, rounds, name, imports):
    """From the request to the first line: a clone, a plain fork, cold starts; and from the command line to the result."""
    static = name == "python"
    python = Template(daemon, name, root, POOL, _zygote(imports))
    cold = ["/usr/bin/python3", "-c", f"import {imports}; print('x', flush=True)"]
    bundle = _bundle(rig, root, f"cold-{name}", cold)
    invoke = [*rig.base, "invoke", name, "--function", str(function), "--handler", "handler:handle", "--event", EVENT]
    with _plain(root, imports) as fork:
        ways = {
            f"{name}: plain fork": lambda: fork.time(PYTHON),
            f"{name}: clone": lambda: _of_full_pool(python, PYTHON),
            f"{name}: invoke, to the printed result": lambda: _invoke(python, invoke),
        }
        for peer, command in peers(rig).items():
            run = [*command, "run", "--bundle", str(bundle)]
            ways[f"{name}: cold, {peer}"] = lambda run=run: timed([*run, rig.id()]).first
        if static:
            c, c_fork = Template(daemon, "static", root, POOL, ["/bin/warm"]), Plain(root, ["/bin/warm"], {})
            ways["static c: plain fork"] = lambda: c_fork.time(["warm"])
            ways["static c: clone"] = lambda: _of_full_pool(c, ["warm"])
        series = {way: Series(way) for way in ways}
        for _ in range(rounds):
            for way, measure in shuffled(ways):
                series[way].add(measure())
    python.remove()
    checks = [
        ratio(f"{name}: clone / plain fork", series[f"{name}: clone"], series[f"{name}: plain fork"], 2.0),
        ratio(f"{name}: clone / cold start by crun", series[f"{name}: clone"], series[f"{name}: cold, crun"], 0.01),
        absolute(f"{name}: invoke", series[f"{name}: invoke, to the printed result"], 10.0),
    ]
    if static:
        c.remove()
        c_fork.__exit__()
        checks += [
            absolute("static c: clone", series["static c: clone"], 0.5),
            ratio("static c: clone / plain fork", series["static c: clone"], series["static c: plain fork"], 2.0),
        ]
    return list(series.values()), checks


def _of_full_pool(template, arguments):
    template.await_pool(POOL)
    # What fills the pool has only just ended.
    time.sleep(0.02)
    return template.time(arguments)


def _invoke(template, command):
    template.await_pool(POOL)
    time.sleep(0.02)
    return timed(command).first


def _bundle(rig, root, name, arguments, annotations=None):
    bundle = rig.make_bundle(name, arguments)
    config = json.loads((bundle / "config.json").read_text())
    config["root"].update(path=str(root))
    config["annotations"] = annotations or {}
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle


def _under_engine(rig, daemon, root, rounds):
    """A container that an engine describes, cold and as a clone: inside of 'start', and by podman as a whole."""
    template = Template(daemon, "engine", root, 0, _zygote(IMPORTS))
    program = ["/usr/bin/python3", "-c", f"import {IMPORTS}; print('x', flush=True)"]
    warm = {"run.regen.template": "engine", "run.regen.template.required": "true"}
    bundles = {"cold": _bundle(rig, root, "start-cold", program), "warm": _bundle(rig, root, "start-warm", program, warm)}
    start = {name: Series(f"start to first line, {name}") for name in bundles}
    whole = {name: Series(f"podman run to first line, {name}") for name in bundles}
    podman = _podman(rig)
    for _ in range(rounds):
        for name, bundle in shuffled(bundles):
            start[name].add(_start(rig, bundle))
            notes = [f"--annotation={key}={value}" for key, value in warm.items()] if name == "warm" else []
            run = ["run", "--rm", "--network=none", "--log-driver=none", *notes, "--rootfs", f"{root}:O", *program]
            whole[name].add(timed([*podman, *run]).first)
    template.remove()
    checks = [
        ratio("start: warm / cold", start["warm"], start["cold"], 0.1),
        ratio("podman run: warm / cold", whole["warm"], whole["cold"]),
    ]
    return [*start.values(), *whole.values()], checks


def _start(rig, bundle):
    """Milliseconds from `start` to the first line."""
    container, (read, write) = rig.id(), os.pipe()
    null = subprocess.DEVNULL
    subprocess.run([*rig.base, "create", "--bundle", bundle, container], check=True, stdin=null, stdout=write, stderr=write)
    os.close(write)
    asked = time.monotonic()
    starting = subprocess.Popen([*rig.base, "start", container], stdin=null)
    took = (first_line(read) - asked) * 1e3
    if starting.wait():
        raise SystemExit("regen start has failed")
    os.close(read)
    rig.regen_run("delete", "--force", container)
    return took


def _podman(rig):
    """podman on directories of the benchmark's own; limits that any machine grants."""
    home = rig.top / "podman"
    home.mkdir()
    script = home / "regen"
    script.write_text(f'#!/bin/sh\nexec {rig.regen} --store {rig.store} "$@"\n')
    script.chmod(0o755)
    print_it = [rig.regen, "install", "--engine", "podman", "--print", "--binary", script]
    printed = subprocess.run(print_it, check=True, capture_output=True, text=True).stdout
    engine = '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\nlock_type = "file"\n'
    limits = '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]\n'
    (home / "containers.conf").write_text(limits + printed.replace("[engine]\n", engine, 1))
    flags = ["--root", home / "root", "--runroot", home / "run", "--tmpdir", home / "tmp", "--storage-driver", "vfs"]
    environment = ["env", f"CONTAINERS_CONF={home / 'containers.conf'}"]
    return list(map(str, [*environment, "podman", *flags, "--runtime", "regen"]))


def _memory(rig, daemon, root):
    """What an idle clone adds, everything counted that has to do with the template: keeper, workers, sandboxes."""
    found = []
    for name, command, stay, limit in (
        ("python", _zygote(IMPORTS), STAY, 2048),
        ("static c", ["/bin/warm"], ["warm", "stay"], 150),
    ):
        template = Template(daemon, name.replace(" ", "-"), root, 0, command)
        # The first one makes what all of them share.
        with template.clone(stay) as first:
            first_line(first.output)
            time.sleep(0.5)
            before = shares(_family(template))
            clones = [template.clone(stay) for _ in range(IDLE)]
            for clone in clones:
                first_line(clone.output)
            time.sleep(0.5)
            each = Series(f"{name}: memory of an idle clone (PSS)", "KiB")
            each.add((shares(_family(template)) - before) / IDLE)
            for clone in clones:
                clone.__exit__()
        found.append((each, absolute(each.name, each, limit)))
        template.remove()
    return [series for series, _ in found], [check for _, check in found]


def _family(template):
    """Every process that descends from the template's keeper, which adopts what is left behind below it."""
    keeper = template.show()["keeper"]
    family, at = [keeper], 0
    while at < len(family):
        for task in Path(f"/proc/{family[at]}/task").glob("*/children"):
            family += map(int, task.read_text().split())
        at += 1
    return family


def _rate(rig, daemon, root):
    """As many as there can be: requesters that each ask for the next clone once the last has printed its line."""
    template = Template(daemon, "rate", root, 2 * POOL, _zygote(IMPORTS))
    template.await_pool(POOL)
    began, times, lock = time.monotonic(), [], threading.Lock()

    def request():
        while (now := time.monotonic()) - began < rig.seconds:
            took = template.time(["python3"], ("json:dumps", '"x"'))
            with lock:
                times.append((now - began, took))

    threads = [threading.Thread(target=request) for _ in range(REQUESTERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    template.remove()
    times.sort()
    tenth = max(len(times) // 10, 1)
    early, late = ([value for _, value in part] for part in (times[:tenth], times[-tenth:]))
    rate = len(times) / took
    print(f"rate: {len(times)} clones in {took:.1f} s; first tenth {median(early):.2f} ms, last {median(late):.2f} ms")
    series = Series("python: a clone, 4 requesters at once", values=[value for _, value in times])
    flat = median(late) / median(early)
    checks = [
        Check("python: seconds for 400 clones", 400 / rate, 400 / rate, 1.0, "s"),
        Check("python: last tenth / first tenth", flat, min(late) / min(early), 1.2, "x"),
    ]
    return [series], checks
