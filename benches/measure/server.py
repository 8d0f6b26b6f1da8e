"""A web server of Python's that takes its socket as descriptor 3 and serves /www; nothing else than `http.server` does.

With CRASH=listening it listens, never says that it is ready, and ends: an instance that fails at the worst time."""

import http.server
import os
import socket
import socketserver
import sys
import time


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def main():
    handler = lambda *arguments: Handler(*arguments, directory="/www")  # noqa: E731
    if os.environ.get("LISTEN_FDS"):
        server = Server(("", 0), handler, bind_and_activate=False)
        server.socket.close()
        server.socket = socket.socket(fileno=3)
        server.server_address = server.socket.getsockname()[:2]
    else:
        server = Server(("127.0.0.1", int(sys.argv[1])), handler)
    if os.environ.get("CRASH") == "listening":
        time.sleep(0.02)
        sys.exit(1)
    if "NOTIFY_SOCKET" in os.environ:
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    server.serve_forever()


main()
