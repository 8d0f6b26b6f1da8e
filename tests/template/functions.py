"""Functions that do all the harm they can, and some that tell how clean their clone is."""

import ctypes
import errno
import os
import signal
import socket
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)


def add(event):
    return sum(event)


def slow(event):
    time.sleep(0.2)
    return sum(event)


def attempt(*tries):
    """The names of what could be done."""
    done = []
    for name, act in tries:
        try:
            if act() not in (-1, False):
                done.append(name)
        except (OSError, ValueError):
            pass
    return done


def write(path):
    with open(path, "wb") as file:
        file.write(b"x")


def clean(event):
    import random
    import secrets
    import ssl
    import tempfile
    import uuid
    unique = {
        "random": random.random(), "secrets": secrets.token_hex(8), "urandom": os.urandom(8).hex(),
        "ssl": ssl.RAND_bytes(8).hex(), "uuid1": str(uuid.uuid1()), "uuid4": str(uuid.uuid4()),
        "hash": hash(uuid.uuid4()), "system": random.SystemRandom().random(), "host": socket.gethostname(),
        "machine": open("/etc/machine-id").read(), "temporary": tempfile.mktemp(),
    }
    # One of them was only there while it was looked.
    files = [number for number in sorted(map(int, os.listdir("/proc/self/fd"))) if attempt(("", lambda: os.fstat(number)))]
    umask = os.umask(0)
    os.umask(umask)
    written = attempt(("/tmp/mark", lambda: os.close(os.open("/tmp/mark", os.O_CREAT | os.O_EXCL))),
                      ("/mark", lambda: os.close(os.open("/mark", os.O_CREAT | os.O_EXCL))))
    shared = attempt(("template's socket", lambda: socket.socket(socket.AF_UNIX).connect("\0template")),
                     ("template's file", lambda: os.stat("/tmp/template")))
    own = socket.socket(socket.AF_UNIX)
    own.bind("\0clone")
    time.sleep(event)
    return {
        "unique": unique,
        "alike": {
            "files": files, "umask": umask, "written": written, "shared": shared, "cwd": os.getcwd(),
            "pid": os.getpid() == int(os.readlink("/proc/self")), "parent": os.getppid(),
            "children": os.path.exists("/proc/self/task/%d/children" % os.getpid()) and
            open("/proc/self/task/%d/children" % os.getpid()).read(),
            "timers": [signal.getitimer(timer)[0] for timer in (0, 1, 2)], "alarm": signal.alarm(0),
            "pending": [int(number) for number in signal.sigpending()],
            "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
            "variables": sorted(name for name in os.environ if name not in ("PATH", "TERM", "HOME", "LC_CTYPE")),
            "unix": [line.split()[-1] for line in open("/proc/net/unix") if "@" in line],
        },
    }


def bomb(event):
    while True:
        try:
            os.fork()
        except OSError:
            pass


def files(event):
    kept = []
    try:
        while True:
            kept.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        return errno.errorcode[error.errno]


def memory(event):
    kept = []
    while True:
        kept.append(bytearray(b"x") * (1 << 20))


def long(event):
    return "x" * event


def loud(event):
    for _ in range(event):
        os.write(1, b"x" * 65536)
        os.write(2, b"y" * 65536)
    return "said"


def writes(event):
    return attempt(*[(path, lambda path=path: write(path)) for path in (
        "/function/app.py", "/function/new", "/proc/1/oom_score_adj",
        "/proc/1/mem", "/proc/self/exe", "/proc/1/exe", "/sys/kernel/uevent_helper", "/run/regen-zygote/x",
        "/run/regen-zygote/regen_zygote/__init__.py", "/usr/bin/python3")])


def parent(event):
    attach = lambda request: libc.ptrace(request, 1, None, None)
    space = ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(space), 8)

    def look(pid):
        return libc.process_vm_readv(pid, vector, 1, vector, 1, 0)

    done = attempt(
        ("attach", lambda: attach(16)), ("seize", lambda: attach(0x4206)), ("read 1", lambda: look(1)),
        ("memory", lambda: os.close(os.open("/proc/1/mem", os.O_RDONLY))),
        ("files", lambda: os.readlink("/proc/1/fd/0")), ("root", lambda: os.listdir("/proc/1/root/")),
        ("executable", lambda: os.readlink("/proc/1/exe")),
        ("host", lambda: any(os.path.exists("/proc/%d" % pid) for pid in event)),
        ("host memory", lambda: all(look(pid) == -1 for pid in event) and -1),
        ("host kill", lambda: [os.kill(pid, 0) for pid in event]))
    # Others are handed on to whoever sends them.
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD):
        os.kill(1, number)
    return done


def closes(event):
    os.write(4, b'{"result": "forged"}\n{"result"')
    os.closerange(0, 4096)
    return 1


def uses(event):
    for number in range(0, 64):
        if number not in (0, 1, 2, 4):
            try:
                os.write(number, b"x")
                return number
            except OSError:
                pass
    return None


def forever(event):
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        pass


def daemons(event):
    for _ in range(4):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                    signal.signal(number, signal.SIG_IGN)
                time.sleep(1000)
            os._exit(0)
    return "gone"


def escapes(event):
    call = lambda name, *arguments: getattr(libc, name)(*arguments)
    return attempt(
        ("chroot", lambda: os.chroot("/tmp")),
        ("mount", lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None)),
        ("bind", lambda: call("mount", b"/", b"/tmp", None, 4096, None)),
        ("remount", lambda: call("mount", None, b"/function", None, 32 | 4096, None)),
        ("umount", lambda: call("umount2", b"/function", 2)),
        ("unshare", lambda: call("unshare", 0x20000)),
        ("pivot", lambda: call("syscall", 155, b"/", b"/tmp")),
        ("device", lambda: os.mknod("/tmp/e", 0o60600, os.makedev(254, 0)) or
         os.open("/tmp/e", os.O_RDONLY)),
        ("capability", lambda: call("syscall", 126, (ctypes.c_uint32 * 2)(0x20080522, 0),
                                    (ctypes.c_uint32 * 6)(*[0xffffffff] * 6))),
        ("identity", lambda: event and os.setuid(0)),
        ("keyctl", lambda: call("syscall", 250, 0, -3, 0) in (-1, 0) and -1),
        *[("setns " + name, lambda name=name: call("setns", os.open("/proc/1/ns/" + name, os.O_RDONLY), 0))
          for name in ("mnt", "pid", "net", "ipc", "uts", "user")])
