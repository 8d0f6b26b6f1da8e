"""Load: clients of our own, which check every answer, and wrk."""

import json
import re
import subprocess
from pathlib import Path

from .program import PAGE

SOURCE = Path(__file__).with_name("load.rs")


class Clients:
    """The program of `load.rs`, built for this run."""

    def __init__(self, directory, root):
        self.program, self.page = directory / "load", root / PAGE
        subprocess.run(["rustc", "--edition", "2024", "-O", "-o", self.program, SOURCE], check=True)

    def start(self, subject, seconds=None, *more):
        """Clients that ask at the rate of what they ask, until `stop` or for so many seconds."""
        question = f"/={self.page}" if subject.speaks == "http" else f"page={self.page}"
        command = [self.program, f"127.0.0.1:{subject.port}", f"--{subject.speaks}", question]
        # Half of them wait with their request, so that at any time some connections are there that say nothing.
        command += ["--threads", "16", "--pause-ms", "20", "--rate", str(subject.rate)]
        command += more
        if seconds:
            command += ["--seconds", str(seconds)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, subject, seconds, *more):
        return self.stop(self.start(subject, seconds, *more))

    def stop(self, load):
        output, _ = load.communicate()
        if load.returncode:
            raise SystemExit(f"the clients ended with {load.returncode}")
        return json.loads(output)


class Wrk:
    """wrk, as fast as answers come, over a new connection for each request or over kept ones."""

    def __init__(self, subject, seconds, connection):
        command = ["wrk", "--threads", "1", "--connections", "4", "--duration", f"{max(1, round(seconds))}s"]
        command += ["--latency", "--timeout", "5s", "--header", f"Connection: {connection}"]
        command += [f"http://127.0.0.1:{subject.port}/"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def wait(self):
        output, _ = self.process.communicate()
        return parse_wrk(output)


def parse_wrk(text):
    """What wrk prints, in the words of our own clients. It says 'Socket errors' only if there were some."""
    total = re.search(r"(\d+) requests in", text)
    if "unable to connect" in text:
        return {"requests": 1, "failed": 1, "reasons": {"wrk connect": 1}}
    if not total:
        raise SystemExit(f"wrk: {text}")
    reasons = {}
    if errors := re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text):
        reasons = {f"wrk {step}": int(count) for step, count in zip(STEPS, errors.groups(), strict=True) if int(count)}
    if status := re.search(r"Non-2xx or 3xx responses: (\d+)", text):
        reasons["wrk status"] = int(status[1])
    failed = sum(reasons.values())
    return {"requests": int(total[1]) + failed, "failed": failed, "reasons": reasons}


STEPS = ("connect", "read", "write", "timeout")
