"""What `warm` asks: templates by their keeper's socket, and the same programs forked with nothing around them."""

import array
import fcntl
import json
import os
import select
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

HEAD = b"regen-template 1\n"
REQUEST, JOB = 9, 3
# Programs look in /proc for what they are.
ENTER = 'mount -t proc proc "$0/proc" && exec /usr/sbin/chroot "$0" "$@"'


def seal(arguments, call=None):
    """A job as a program finds it: see docs/zygote.md."""
    fields = ["regen-job", "1", str(len(arguments)), *arguments, "1", "PATH=/usr/local/bin:/usr/bin:/bin"]
    fields += ["2", *call] if call else ["0"]
    job = os.memfd_create("job")
    os.write(job, b"".join(field.encode() + b"\0" for field in fields))
    os.lseek(job, 0, os.SEEK_SET)
    return job


def first_line(descriptor, limit=30):
    """The time at which it came."""
    if not select.select([descriptor], [], [], limit)[0]:
        raise SystemExit(f"nothing was printed within {limit} s")
    if not os.read(descriptor, 1 << 16):
        raise SystemExit("a clone ended before it had printed anything")
    return time.monotonic()


class Clone:
    """A clone, as long as the connection that it was asked for by."""

    def __init__(self, connection, output, asked, answer):
        self.connection, self.output, self.asked, self.answer = connection, output, asked, answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.output)
        self.connection.close()


class Template:
    """A template of a daemon."""

    def __init__(self, daemon, name, root, pool, command):
        self.daemon, self.name = daemon, name
        daemon.must("template", "create", name, "--rootfs", root, "--pool", pool, "--", *command)
        self.path = str(daemon.rig.store / "templates/root" / name / "socket")

    def show(self):
        return json.loads(self.daemon.must("template", "show", self.name, "--json"))

    def await_pool(self, count):
        """Until so many sandboxes wait."""
        deadline = time.monotonic() + 30
        while self.show()["sandboxes"] < count:
            if time.monotonic() > deadline:
                raise SystemExit(f"template '{self.name}' has no {count} sandboxes: {self.show()}")
            time.sleep(0.005)

    def clone(self, arguments, call=None):
        """Asks for one; what it prints comes by `output`, and if something is called, what that gives."""
        with ExitStack() as ours:
            read, write = os.pipe()
            ours.callback(os.close, write)
            job, null = seal(arguments, call), os.open("/dev/null", os.O_RDWR)
            ours.callback(os.close, job)
            ours.callback(os.close, null)
            given = [job, null, null if call else write, null, *([write] if call else [])]
            take = {"request": "take", "cleanup": "with-connection", "extra": ["result"] if call else []}
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", given))]
            asked = time.monotonic()
            connection.connect(self.path)
            connection.sendmsg([HEAD + json.dumps(take).encode()], ancillary)
            return Clone(connection, read, asked, lambda: _taken(connection.recv(1 << 16)))

    def time(self, arguments, call=None):
        """Milliseconds from the request to the first line."""
        with self.clone(arguments, call) as clone:
            came = first_line(clone.output)
            clone.answer()
            return (came - clone.asked) * 1e3

    def remove(self):
        self.daemon.must("template", "rm", self.name)


def _taken(message):
    answer = json.loads(message.removeprefix(HEAD))
    if answer["answer"] != "taken":
        raise SystemExit(f"a clone: {answer}")
    return answer


class Plain:
    """The same program in the same root file system, which forks when asked to, and nothing else."""

    def __init__(self, root, command, environment):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.read, write = os.pipe()
        self.job, self.count = os.memfd_create("job"), 0
        # The program's children have what it has: their job is a file that is written anew before each fork.
        places = {0: os.open("/dev/null", os.O_RDWR), 1: write, JOB: self.job, REQUEST: theirs.fileno()}
        lifted = {place: fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 100) for place, descriptor in places.items()}
        actions = [(os.POSIX_SPAWN_DUP2, descriptor, place) for place, descriptor in lifted.items()]
        variables = {"REGEN_OCI_ZYGOTE": "1", "REGEN_OCI_ZYGOTE_FD": str(REQUEST), **environment}
        enter = ["unshare", "--mount", "sh", "-c", ENTER, str(root), *command]
        self.pid = os.posix_spawnp("unshare", enter, variables, file_actions=actions)
        for descriptor in (*lifted.values(), places[0]):
            os.close(descriptor)
        theirs.close()
        os.close(write)
        self.channel = ours
        ready = self.channel.recv(4096)
        if not ready.startswith(b"ready 1"):
            raise SystemExit(f"{command[0]}: {ready!r}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.read)
        os.close(self.job)

    def time(self, arguments):
        """Milliseconds from the request to the first line."""
        job = seal(arguments)
        os.ftruncate(self.job, 0)
        os.pwrite(self.job, os.pread(job, 1 << 20, 0), 0)
        os.lseek(self.job, 0, os.SEEK_SET)
        os.close(job)
        self.count += 1
        asked = time.monotonic()
        self.channel.send(b"fork %d" % self.count)
        came = first_line(self.read)
        self.channel.recv(4096)
        return (came - asked) * 1e3


def shares(pids):
    """The sum of proportional set sizes, in KiB; of who has ended, nothing."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total


__all__ = ["Clone", "Plain", "Template", "first_line", "seal", "shares"]
