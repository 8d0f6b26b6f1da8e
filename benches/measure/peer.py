"""What others do to change a server that runs: nginx and haproxy by their own reload, and anything by stop and start."""

import contextlib
import os
import signal

from .program import PAGE, free_port, start_outside, stop


class Peer:
    """A server outside regen, but in the same root file system, that is asked like a program in regen."""

    rate = 600
    speaks = "http"

    def __init__(self, root):
        self.root, self.port = root, free_port()
        self.server = None

    def start(self):
        self.server = start_outside(self.root, self.command(), self.port)

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()

    def write(self, name, text):
        (self.root / name).write_text(text)
        return f"/{name}"


class Nginx(Peer):
    title = "nginx, its own reload"

    def command(self):
        config = f"""daemon off; pid /run/peer.pid; user www-data; worker_processes 2; error_log stderr;
events {{}}
http {{ access_log off; server {{ listen 127.0.0.1:{self.port}; root /www; }} }}
"""
        return ["/usr/sbin/nginx", "-e", "stderr", "-c", self.write("etc/nginx/peer.conf", config)]

    def restart(self):
        self.server.send_signal(signal.SIGHUP)


class Haproxy(Peer):
    """Its worker hands the listeners to the next one through the statistics socket, which is the best that it can do."""

    title = "haproxy, its own reload"

    def command(self):
        config = f"""global
    stats socket /run/haproxy.sock mode 600 level admin expose-fd listeners
    hard-stop-after 5s
    tune.bufsize 65536
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend page
    bind 127.0.0.1:{self.port}
    http-request return status 200 content-type text/plain file /{PAGE}
"""
        return ["/usr/sbin/haproxy", "-W", "-f", self.write("etc/haproxy.cfg", config)]

    def restart(self):
        self.server.send_signal(signal.SIGUSR2)


class StopThenStart(Peer):
    """A static server, stopped and then started, as without anything that helps."""

    title = "static rust, stop then start"

    def command(self):
        return ["/bin/rust-server", f"127.0.0.1:{self.port}"]

    def restart(self):
        stop(self.server)
        self.start()


def peers(root):
    return [kind(root) for kind in (Nginx, Haproxy, StopThenStart)]
