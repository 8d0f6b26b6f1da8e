"""What operations cost: the answer to a call, a fan-out, how many a second; resolving from a node's copy of all services."""

import base64
import json
import selectors
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

from .report import Check, Series, absolute, ratio
from .service import Daemon

TARGETS = (1, 100, 10_000)
CONNECTIONS = 32
SERVICES = 10_000
# The copy is asked for one of them by a program that keeps several connections busy.
REQUIREMENT = "^1"
CALLS = 5


def ops(rig, rounds):
    """Once over SQLite, once over an etcd of the benchmark's own."""
    with Daemon(rig) as daemon:
        answers, checks = _answers(daemon, rounds * CALLS)
        fan, more = _fan_out(daemon, rounds)
        checks += more + [_rate(daemon, rig.seconds / 4, "SQLite", 1500)]
    with Etcd(rig) as etcd, Daemon(rig, "--cluster", etcd.url, "--node", "bench") as daemon:
        checks.append(_rate(daemon, rig.seconds / 4, "etcd", 500))
        copied, more = _resolve(daemon, etcd, rig)
    return [*answers, *fan, *copied], checks + more


def _answers(daemon, rounds):
    """In turns: from sending a call to having read the operation's id."""
    series = {count: Series(f"answer to a call with {count} targets") for count in TARGETS}
    with Caller(daemon) as caller:
        for _ in range(rounds):
            for count, one in series.items():
                started = time.monotonic()
                operation = caller.call("Probe", targets=count, delay_ms=0)["operation"]
                one.add((time.monotonic() - started) * 1e3)
                # The next one is not to wait for what this one has left to do.
                caller.call("Wait", id=operation)
    checks = [absolute(f"answer, {count} targets", one, 2.0) for count, one in series.items()]
    checks.append(ratio("answer, 10,000 targets against 1", series[10_000], series[1], 3.0))
    return list(series.values()), checks


def _fan_out(daemon, rounds):
    whole = Series("100 targets of 10 ms each, from the call to the end")
    with Caller(daemon) as caller:
        for _ in range(rounds):
            started = time.monotonic()
            caller.call("Wait", id=caller.call("Probe", targets=100, delay_ms=10)["operation"])
            whole.add((time.monotonic() - started) * 1e3)
    return [whole], [absolute("fan-out, 100 targets of 10 ms (one after the other: 1,000)", whole, 60.0)]


def _rate(daemon, seconds, registry, least):
    """Calls on several connections, each with the next one when the one before was answered, until all have ended."""
    asked, last = 0, None
    call = _message("Probe", {"targets": 1, "delay_ms": 0})
    with selectors.DefaultSelector() as selector:
        started = time.monotonic()
        for _ in range(CONNECTIONS):
            stream = socket.socket(socket.AF_UNIX)
            stream.connect(str(daemon.socket()))
            selector.register(stream, selectors.EVENT_READ)
            stream.sendall(call)
        while selector.get_map():
            for key, _ in selector.select():
                answer = key.fileobj.recv(1 << 16)
                if not answer.endswith(b"\0"):
                    raise SystemExit(f"operations: half an answer: {answer!r}")
                last = _parameters(answer[:-1])["operation"]
                asked += 1
                if time.monotonic() - started < seconds:
                    key.fileobj.sendall(call)
                else:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
    with Caller(daemon) as caller:
        caller.call("Wait", id=last)
        while caller.call("List", state="queued", limit=1)["operations"] or caller.call("List", state="running", limit=1)["operations"]:
            time.sleep(0.001)
    rate = asked / (time.monotonic() - started)
    return Check(f"operations a second with {registry}, of {asked} (at least {least}): milliseconds each", 1e3 / rate, 1e3 / rate, 1e3 / least, "ms")


def _resolve(daemon, etcd, rig):
    """A node that is made up serves all of them; one of those is asked for."""
    key, value = etcd.wait_for("node/")
    node = key.removeprefix("node/")
    for number in range(SERVICES):
        name = f"many-{number}"
        listen = [{"name": name, "address": f"tcp://192.0.2.1:{1 + number}"}]
        member = {"name": name, "version": "1.0.0", "instance": f"{name}-1.0.0-1", "listen": listen}
        etcd.put(f"member/{node}x/{name}/1.0.0", json.dumps(member))
    etcd.put(f"node/{node}x", value.replace(f'"{node}"', f'"{node}x"'))
    while daemon.regen("resolve", f"many-{SERVICES - 1}@{REQUIREMENT}").returncode:
        time.sleep(0.05)
    asker = rig.top / "resolve"
    source = Path(__file__).with_name("resolve.rs")
    subprocess.run(["rustc", "--edition", "2024", "-O", "-o", asker, source], check=True)
    series = Series(f"resolve, one connection, {SERVICES} services of another node", "us")
    for _ in range(3):
        command = [asker, daemon.socket(), "many-77", REQUIREMENT, "--seconds", "3"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        series.add(1e6 / json.loads(done.stdout)["one_connection"])
    inside = Series(f"the same in the daemon, {SERVICES} services", "us")
    for _ in range(3):
        command = ["cargo", "run", "--release", "--quiet", "--locked", "--example", "copy", "--", etcd.url, f"many-77@{REQUIREMENT}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        inside.add(json.loads(done.stdout)["microseconds"])
    checks = [absolute("resolve from the copy (50 us are 20,000 a second)", series, 50.0)]
    return [series, inside], [*checks, absolute("the same in the daemon", inside, 5.0)]


class Etcd:
    """An etcd that is removed with what it has."""

    def __init__(self, rig):
        self.directory = rig.top / "etcd"
        self.client, peer = _free_ports(2)
        self.url = f"etcd://127.0.0.1:{self.client}"
        client, peer = f"http://127.0.0.1:{self.client}", f"http://127.0.0.1:{peer}"
        command = [shutil.which("etcd"), "--data-dir", self.directory, "--name", "one", "--logger", "zap", "--log-level", "error"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"one={peer}"]
        with (rig.top / "etcd.log").open("w") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.put("is-there", "yes")
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit((rig.top / "etcd.log").read_text())
                time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(timeout=30)

    def put(self, key, value):
        self._ask("put", {"key": _encode(f"regen/{key}"), "value": _encode(value)})

    def wait_for(self, prefix):
        """The first key below the prefix, without what all keys begin with, and its value."""
        deadline = time.monotonic() + 30
        begin = f"regen/{prefix}"
        asked = {"key": _encode(begin), "range_end": _encode(begin[:-1] + chr(ord(begin[-1]) + 1))}
        while time.monotonic() < deadline:
            for found in self._ask("range", asked).get("kvs", []):
                return base64.b64decode(found["key"]).decode()[len("regen/") :], base64.b64decode(found["value"]).decode()
            time.sleep(0.05)
        raise SystemExit(f"etcd has nothing below {prefix}")

    def _ask(self, verb, question):
        url = f"http://127.0.0.1:{self.client}/v3/kv/{verb}"
        with urllib.request.urlopen(url, json.dumps(question).encode(), timeout=10) as answer:
            return json.load(answer)


class Caller:
    """A connection to the daemon on which one call follows the other."""

    def __init__(self, daemon):
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.connect(str(daemon.socket()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()

    def call(self, method, **parameters):
        self.stream.sendall(_message(method, parameters))
        answer = bytearray()
        while not answer.endswith(b"\0"):
            piece = self.stream.recv(1 << 20)
            if not piece:
                raise SystemExit(f"operations: {method}: the daemon has hung up")
            answer += piece
        return _parameters(answer[:-1])


def _message(method, parameters):
    return json.dumps({"method": f"run.regen.Operation.{method}", "parameters": parameters}).encode() + b"\0"


def _parameters(answer):
    answer = json.loads(answer)
    if "error" in answer:
        raise SystemExit(f"operations: {answer}")
    return answer["parameters"]


def _encode(text):
    return base64.b64encode(text.encode()).decode()


def _free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
