"""Requests lost and delayed by changing a server that runs: regen's hot restart, others' reloads, stop and start."""

import json
import math
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from .client import Clients, Wrk
from .parts import shuffled
from .peer import peers
from .program import make_root, programs, start_outside, stop
from .report import Check, Series, absolute, difference, ratio
from .service import HALF, Daemon, Service, private_kib, resident_kib, wake_ups

# At most ten restarts a second. Programs that take longer to start are given more time for as many of them.
INTERVAL = 0.1
LONGER = 3
ENOUGH = 200_000
# One of each hand-over shows what a crash does to those who ask.
CRASHING = ("static rust", "nginx")
# Clients that keep their connections make an old instance wait for them: it gets a second, and a restart comes every two.
KEEPING = ("static go", "nginx")
KEPT_INTERVAL = 2.0
KEPT_OPTIONS = ("--drain-timeout", "1s")


@dataclass
class Account:
    """What became of one subject's requests, over all rounds."""

    title: str
    ours: bool
    restarts: int = 0
    seconds: float = 0.0
    requests: int = 0
    failed: int = 0
    retired: int = 0
    reasons: dict = field(default_factory=dict)
    failures: list = field(default_factory=list)
    quiet: Series = None
    busy: Series = None

    def __post_init__(self):
        self.quiet = Series(f"{self.title}: p99 without restarts")
        self.busy = Series(f"{self.title}: p99 during restarts")

    def add(self, outcome):
        self.requests += outcome["requests"]
        self.failed += outcome["failed"]
        self.retired += outcome.get("retired", 0)
        self.failures += outcome.get("failures", [])
        for reason, count in outcome["reasons"].items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count


def hot_restart(rig, rounds):
    """All in turns: each round has its share of the seconds of restarts, and half as much without any."""
    every = programs()
    root = rig.top / "programs"
    make_root(root, every)
    clients = Clients(rig.top, root)
    with Daemon(rig) as daemon:
        subjects = [Service(daemon, program, root) for program in every]
        subjects += [Service(daemon, program, root, HALF) for program in every if program.name in CRASHING]
        subjects += peers(root)
        keeping = [Service(daemon, program, root, options=KEPT_OPTIONS) for program in every if program.name in KEEPING]
        accounts = {subject.title: Account(subject.title, isinstance(subject, Service)) for subject in subjects}
        kept = {subject.title: Account(f"{subject.title}, kept connections", ours=False) for subject in keeping}
        for _ in range(rounds):
            for title, subject in shuffled({subject.title: subject for subject in subjects}):
                _slice(clients, subject, accounts[title], rig.seconds / rounds)
            for subject in keeping:
                _slice_of_kept(clients, subject, kept[subject.title], rig.seconds / rounds)
        rest, checks = _rest(daemon, every, root)
        static = next(program for program in every if program.name == "static rust")
        asked, more = _resolve(daemon, static, root, rig.top)
    accounts = [*accounts.values(), *kept.values()]
    _show(accounts)
    series = [series for account in accounts for series in (account.quiet, account.busy)]
    return [*series, *rest, *asked], [*_checks(accounts), *checks, *more]


def _slice(clients, subject, account, seconds):
    subject.start()
    quiet = clients.run(subject, seconds / 2)
    if quiet["failed"]:
        print(f"{subject.title}: without restarts: {quiet['reasons']}", flush=True)
    load = clients.start(subject)
    began = time.monotonic()
    count = paced(subject.restart, seconds, INTERVAL)
    if missing := round(seconds / INTERVAL) - count:
        count += paced(subject.restart, seconds * (LONGER - 1), INTERVAL, missing)
    took = time.monotonic() - began
    busy = clients.stop(load)
    account.restarts += count
    account.seconds += took
    account.quiet.add(quiet["p99_us"] / 1e3)
    account.busy.add(busy["p99_us"] / 1e3)
    account.add(busy)
    if subject.speaks == "http":
        wrk = Wrk(subject, seconds / 4, "close")
        account.restarts += paced(subject.restart, max(1, round(seconds / 4)) - 0.2, INTERVAL)
        account.add(wrk.wait())
    subject.stop()
    rate = count / took
    print(f"{account.title}: {account.failed} of {account.requests} failed, {rate:.1f} restarts a second", flush=True)


def _slice_of_kept(clients, subject, account, seconds):
    subject.start()
    account.quiet.add(clients.run(subject, seconds / 2, "--kept")["p99_us"] / 1e3)
    load = clients.start(subject, None, "--kept")
    account.restarts += paced(subject.restart, seconds, KEPT_INTERVAL)
    busy = clients.stop(load)
    account.busy.add(busy["p99_us"] / 1e3)
    account.add(busy)
    subject.stop()


def paced(restart, seconds, interval, most=math.inf):
    """Calls it again and again, beginning no more often than once an interval; gives how often."""
    end = time.monotonic() + seconds
    count = 0
    while count < most and (now := time.monotonic()) < end:
        restart()
        count += 1
        time.sleep(max(0.0, min(now + interval, end) - time.monotonic()))
    return count


def _checks(accounts):
    ours = [account for account in accounts if account.ours]
    asked = sum(account.requests for account in ours)
    failed = sum(account.failed for account in ours)
    checks = [Check(f"requests failed, of {asked} (at least {ENOUGH} are to be asked)", failed, failed, 0)]
    checks += [Check(f"{account.title}: failed of {account.requests}", account.failed, account.failed) for account in accounts]
    return checks + [ratio(f"{one.title}: p99 during / without restarts", one.busy, one.quiet, 1.5) for one in ours]


def _rest(daemon, programs, root):
    """What a restart takes beyond the program's own start, and what the daemon and keepers cost at rest."""
    series, checks = [], []
    keeper = Series("keeper: private memory", "KiB")
    for program in programs:
        service = Service(daemon, program, root)
        service.start()
        restart, alone = Series(f"{program.title}: restart"), Series(f"{program.title}: the program's own start")
        for _ in range(10):
            restart.add(_timed(service.restart))
            started = time.monotonic()
            server = start_outside(root, program.outside, program.outside_port, program.ready)
            alone.add((time.monotonic() - started) * 1e3)
            stop(server)
        keeper.add(private_kib(service.keeper()))
        series += [restart, alone]
        checks.append(difference(f"{program.title}: restart beyond the program's own start", restart, alone, 30.0))
        service.stop()
    time.sleep(2)
    pid = daemon.process.pid
    before = wake_ups(pid)
    time.sleep(10)
    woken = wake_ups(pid) - before
    resident = Series("daemon at rest: resident", "KiB", [resident_kib(pid)])
    checks += [
        absolute("daemon at rest: resident", resident, 12288),
        Check("daemon at rest: wake-ups in 10 s", woken, woken, 0),
        absolute("keeper: private memory", keeper, 3072),
    ]
    return [*series, keeper, resident], checks


def _resolve(daemon, program, root, top):
    """Resolving, and being connected, by the program of `resolve.rs`."""
    asker = top / "resolve"
    source = Path(__file__).with_name("resolve.rs")
    subprocess.run(["rustc", "--edition", "2024", "-O", "-o", asker, source], check=True)
    service = Service(daemon, program, root)
    service.start()
    command = [asker, daemon.socket(), service.name, "^1"]

    def ask(*more):
        done = subprocess.run([*command, "--seconds", "3", *more], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    series = {name: Series(f"resolve, {name}", "us") for name in ("one_thread", "one_connection", "connection_each")}
    through, plain = Series("connect through the daemon", "us"), Series("connect", "us")
    for _ in range(3):
        rates = ask()
        for name, one in series.items():
            one.add(1e6 / rates[name])
        times = ask("--connect", f"127.0.0.1:{service.port}")
        through.add(times["through_daemon_us"])
        plain.add(times["plain_us"])
    service.stop()
    checks = [
        absolute("resolve on one connection (50 us are 20,000 a second)", series["one_connection"], 50.0),
        difference("connect through the daemon beyond a plain connect", through, plain, 100.0),
    ]
    return [*series.values(), through, plain], checks


def _timed(call):
    started = time.monotonic()
    call()
    return (time.monotonic() - started) * 1e3


def _show(accounts):
    width = max(len(account.title) for account in accounts)
    print(f"\n{'':<{width}}  restarts  requests    failed  p99 without  during, ms")
    for one in accounts:
        numbers = f"{one.restarts:8}  {one.requests:8}  {one.failed:8}  {one.quiet.median:11.2f}  {one.busy.median:10.2f}"
        print(f"{one.title:<{width}}  {numbers}  {one.retired or ''} {one.reasons or ''}")
        for failure in one.failures[:5]:
            print(f"{'':<{width}}    {failure}")
