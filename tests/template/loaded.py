"""What a template should not do while it loads, and a clone should not have."""

import os
import random
import signal
import socket

random.seed(1)
os.umask(0o777)
os.environ["TEMPLATE_SECRET"] = "x"
os.chdir("/usr")
for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
    signal.setitimer(timer, 1000)
FILES = [os.open("/dev/null", os.O_RDWR) for _ in range(10)]
for file in FILES:
    os.set_inheritable(file, True)
LISTENER = socket.socket(socket.AF_UNIX)
LISTENER.bind("\0template")
LISTENER.listen()
if os.fork() == 0:
    signal.pause()
