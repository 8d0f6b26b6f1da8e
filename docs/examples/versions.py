"""Versions of services, from Python: resolve, connect, and a copy of who serves. No packages are needed."""

import contextlib
import json
import socket
import threading
import time

CONTROL = "/run/regen/run.regen.Control"


class Daemon:
    """A connection to the daemon, for one call after the other."""

    def __init__(self, path=CONTROL):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.bytes, self.files = b"", []

    def send(self, method, more=False, **parameters):
        call = {"method": f"run.regen.Service.{method}", "parameters": parameters, "more": more}
        self.socket.sendall(json.dumps(call).encode() + b"\0")

    def receive(self):
        while b"\0" not in self.bytes:
            chunk, files, _, _ = socket.recv_fds(self.socket, 65536, 4)
            if not chunk:
                raise ConnectionError("the daemon has gone")
            self.bytes, self.files = self.bytes + chunk, self.files + files
        message, self.bytes = self.bytes.split(b"\0", 1)
        answer = json.loads(message)
        if "error" in answer:
            raise LookupError(answer["parameters"].get("message", answer["error"]))
        return answer["parameters"]

    def resolve(self, service, requirement="*"):
        """Where the newest version is that satisfies: version, instance, address."""
        self.send("Resolve", name=service, requirement=requirement)
        return self.receive()

    def connect(self, service, requirement="*"):
        """A connected socket to it, and which version it is."""
        self.send("Connect", name=service, requirement=requirement)
        answer = self.receive()
        files, self.files = self.files, []
        return socket.socket(fileno=files[answer["fdIndex"]]), answer["version"]


class Copy:
    """Who serves, kept by a thread that listens. Whoever connects asks nobody."""

    def __init__(self, service, requirement="*", path=CONTROL):
        self.versions, self.turn = {}, 0
        self.question = {"name": service, "requirement": requirement}
        daemon = self.ask(path)
        self.hear(daemon.receive())
        threading.Thread(target=self.listen, args=[daemon, path], daemon=True).start()

    def ask(self, path):
        daemon = Daemon(path)
        daemon.send("Watch", more=True, **self.question)
        return daemon

    def listen(self, daemon, path):
        while True:
            try:
                while True:
                    self.hear(daemon.receive())
            except OSError:
                # The daemon restarts, and what serves goes on: what is known stays until then.
                time.sleep(0.05)
            with contextlib.suppress(OSError):
                daemon = self.ask(path)

    def hear(self, news):
        # The state comes first, and again if we were too slow for the changes: what is not in it has gone.
        if "state" in news:
            self.versions = {member["version"]: member["address"] for member in news["state"]}
        for change in news.get("changes", []):
            versions = {version: a for version, a in self.versions.items() if version != change["version"]}
            if change["change"] == "added":
                versions[change["version"]] = change["address"]
            self.versions = versions  # Whoever looks meanwhile sees all of the old ones or of the new ones.

    def newest(self):
        """The newest version and its address; builds of one version (1.2.0+a, 1.2.0+b) take turns."""
        versions = self.versions
        ranks = {version: precedence(version) for version in versions}
        equals = [version for version in versions if ranks[version] == max(ranks.values())]
        if not equals:
            raise LookupError("no version that satisfies is serving")
        self.turn += 1
        version = equals[self.turn % len(equals)]
        return version, versions[version]

    def connect(self):
        """A socket to the newest. One that refuses has just gone: the copy will know in a moment."""
        for _ in range(100):
            version, address = self.newest()
            host, port = address.removeprefix("tcp://").rsplit(":", 1)
            try:
                return socket.create_connection((host.strip("[]"), int(port))), version
            except ConnectionRefusedError:
                time.sleep(0.01)
        raise ConnectionRefusedError(address)


def precedence(version):
    """semver.org, 11: numbers count as numbers, a pre-release comes before its release, build metadata says nothing."""
    numbers, _, pre = version.partition("+")[0].partition("-")
    words = [(0, int(word), "") if word.isdigit() else (1, 0, word) for word in pre.split(".")]
    return [int(number) for number in numbers.split(".")], not pre, words
