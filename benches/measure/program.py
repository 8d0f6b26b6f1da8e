"""The programs whose restarts are measured, and the root file system that all of them run in."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from .tree import make_text

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "docs/examples/services"
PAGE = "www/index.html"
PAGE_BYTES = 16384
PACKAGES = "gunicorn,haproxy,nginx-light,redis-server"


@dataclass
class Program:
    """A program, how its sockets are handed over, and how it is asked."""

    name: str
    handover: str
    # Of the port that it binds; where it is given a socket instead, what it is started by outside.
    binds: callable
    takes: list = None
    ready: str = "tcp"
    stop_signal: str = "TERM"
    # Requests a second: well below what two processors can do beside ten starts a second.
    rate: int = 600
    speaks: str = "http"
    port: int = field(default_factory=lambda: free_port())
    outside_port: int = field(default_factory=lambda: free_port())

    @property
    def title(self):
        return f"{self.name}, {self.handover}"

    @property
    def command(self):
        return self.takes or self.binds(self.port)

    @property
    def outside(self):
        return self.binds(self.outside_port)


def programs():
    """Each with every hand-over that it can have."""
    python = "/usr/bin/python3"
    simple = [python, "-m", "http.server", "--bind", "127.0.0.1", "--directory", "/www"]
    gunicorn = ["/usr/bin/gunicorn", "--chdir", "/app", "--worker-class", "gthread", "--threads", "4"]
    redis = ["/usr/bin/redis-server", "--save", "", "--dir", "/data", "--supervised", "systemd", "--port"]
    nginx = ["/usr/sbin/nginx", "-e", "stderr", "-c"]
    found = [
        Program("python http.server", "intercept", lambda port: [*simple, str(port)], ready="http:/", rate=300),
        Program(
            "python socketserver",
            "listen-fds",
            lambda port: [python, "/bin/server.py", str(port)],
            takes=[python, "/bin/server.py"],
            ready="http:/",
            rate=300,
        ),
        Program(
            "gunicorn",
            "listen-fds",
            lambda port: [*gunicorn, "--bind", f"127.0.0.1:{port}", "app:app"],
            takes=[*gunicorn, "app:app"],
            # It says that it is ready before it has a worker.
            ready="http:/",
            rate=300,
        ),
        Program(
            "nginx",
            "intercept",
            lambda port: [*nginx, f"/etc/nginx/{port}.conf"],
            ready="http:/",
            stop_signal="QUIT",
        ),
        Program("redis", "intercept", lambda port: [*redis, str(port)], ready="notify", speaks="redis"),
    ]
    for name, ready in (("go", "http:/"), ("rust", "tcp")):
        binds = lambda port, name=name: [f"/bin/{name}-server", f"127.0.0.1:{port}"]  # noqa: E731
        found.append(Program(f"static {name}", "listen-fds", binds, ready=ready))
        found.append(Program(f"static {name}", "intercept", binds, ready=ready))
    return found


def free_port():
    """Not one of those that the kernel gives to clients: the load would take it between two servers."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def make_root(root, programs):
    """Every program, and one page that all of them serve; from Debian's packages and the examples."""
    subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", "bookworm", root], check=True)
    for example in ("go", "rust"):
        made = root.parent / f"made-{example}"
        subprocess.run([EXAMPLES / example / "make", made, ""], check=True)
        shutil.copy(made / "server", root / f"bin/{example}-server")
    shutil.copy(HERE / "server.py", root / "bin/server.py")
    for directory in ("www", "app", "data"):
        (root / directory).mkdir()
    (root / PAGE).write_bytes(make_text(random.Random(7), 2 * PAGE_BYTES)[:PAGE_BYTES])
    shutil.copy(EXAMPLES / "gunicorn/app.py", root / "app/app.py")
    for program in programs:
        if program.name == "nginx":
            for port in (program.port, program.outside_port):
                config = (EXAMPLES / "nginx/nginx.conf").read_text().replace("127.0.0.1:8080", f"127.0.0.1:{port}")
                (root / f"etc/nginx/{port}.conf").write_text(config)
        if program.name == "redis":
            _fill_redis(root, program)


def _fill_redis(root, program):
    """A dump with the page, which every instance loads."""
    page = (root / PAGE).read_bytes()
    server = start_outside(root, program.outside, program.outside_port)
    with socket.create_connection(("127.0.0.1", program.outside_port)) as connection:
        connection.sendall(b"*3\r\n$3\r\nSET\r\n$4\r\npage\r\n$%d\r\n%s\r\n" % (len(page), page))
        connection.sendall(b"SAVE\r\n")
        answer = b""
        while answer.count(b"+OK") < 2:
            answer += connection.recv(64)
    stop(server)


def start_outside(root, command, port, ready="tcp"):
    """Starts a program in the root file system without regen; back when it accepts connections on this port, or answers."""
    null = subprocess.DEVNULL

    def enter():
        os.chroot(root)
        os.chdir("/")

    with (root.parent / "outside.log").open("a") as log:
        settings = {"stdin": null, "stdout": log, "stderr": log, "start_new_session": True, "preexec_fn": enter}
        server = subprocess.Popen(command, **settings)
    await_port(port, server, ready)
    return server


def await_port(port, server, ready):
    """Until somebody accepts connections, or answers the question by which an instance would be known to be ready."""
    path = ready.removeprefix("http:") if ready.startswith("http:") else None
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                if path:
                    probe.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
                    probe.recv(4096)
                return
        if server.poll() is not None:
            raise SystemExit(f"{server.args} ended with {server.returncode}")
        time.sleep(0.0002)
    raise SystemExit(f"nobody listens on port {port}")


def stop(server, number=signal.SIGTERM):
    server.send_signal(number)
    try:
        server.wait(timeout=10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
