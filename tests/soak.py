"""The soak: dynos that are stopped and started again and again under load, and what becomes of it all.

`python -m tests.soak` runs every row and prints them as a table: how the dyno is stopped, Celery's pool, the
broker; and beside them plain `honcho start -f LocalProcfile` with Celery's defaults. `--help` tells the rest.

A row: a dyno starts, clients ask for pages and order jobs, the dyno is stopped as its platform does it while they
go on, the next one starts on the same port, database and broker; at the end a last dyno finishes what is left. A job
counts as accepted when its 202 arrived, and as done when the database says so.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import platform
import random
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote, urlsplit

import amqp
import psycopg
import redis

from boiler.postgres import Embedded
from boiler.settings import ROOT, SETTINGS
from tests import servers
from tests.dyno import SIZES, Dyno
from tests.platform import Ending, Stop
from tests.wait import wait_for

POOLS = ("prefork", "threads", "gevent")
BROKERS = ("pgmq", "redis", "rabbitmq")
BASELINE = "honcho"
QUEUE = "celery"
SLOTS = 6  # jobs that run at once
SEED = 20
# Seconds.
SHORTER = 5.0  # a job that is so much shorter than the grace is never run twice
LATE = 1.0  # a request that was sent so soon after the signal was not in flight at it
AGAIN = 10.0  # from a dyno's start until a job that was put back runs again
PACE = 0.1  # between two requests of one client
KEY = "a-key-for-the-soak-alone-0123456789-abcdefghijklmnopqrstuvwxyz"

# What plain honcho runs: the usual way of packing a Django and Celery app.
PLAIN_PROCFILE = """\
web: gunicorn --chdir app -k gevent --bind 127.0.0.1:$PORT config.wsgi
worker: celery --workdir app --app config worker -B --loglevel INFO
"""
PLAIN_CELERY = """
import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
app = Celery("config")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
"""
PLAIN_SETTINGS = """
for _name in [name for name in globals() if name.startswith("CELERY_")]:
    del globals()[_name]
CELERY_BROKER_URL = BROKER_URL
CELERY_WORKER_CONCURRENCY = get("WORKER_CONCURRENCY")
DATABASES = {"default": dj_database_url.parse(database_url())}
del LOGGING
"""

# Goes before whatever the user's environment says.
DEFAULTS = {name: setting.default for name, setting in SETTINGS.items()}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One line of the table: what is cycled, and how. `grace` is in seconds."""

    broker: str
    pool: str
    stop: Stop
    grace: float
    plain: bool = False

    def __str__(self) -> str:
        name = f"{BASELINE if self.plain else self.broker}-{self.pool}-{self.stop}"
        return f"{name}-{self.grace:g}s"

    @property
    def lane(self) -> str:
        """Rows of one lane share their servers and run one after the other."""
        return BASELINE if self.plain else self.broker


@dataclass(frozen=True)
class Form:
    """How long a row is: its cycles, the jobs of each, the longest job, and jobs a second."""

    cycles: int
    jobs: int
    longest: float
    rate: float


SHORT = Form(cycles=2, jobs=20, longest=15, rate=3.5)
LONG = Form(cycles=5, jobs=40, longest=60, rate=1.2)


def rows(*, long: bool = False) -> list[Row]:
    """Every row of ours."""
    graces = dict.fromkeys(Stop, (30.0,) if long else (10.0,))
    if long:
        graces[Stop.GROUP] = (30.0, 3.0)  # Piku's own
    return [
        Row(broker, pool, stop, grace)
        for broker in BROKERS
        for pool in POOLS
        for stop in Stop
        for grace in graces[stop]
    ]


def plain_rows(*, long: bool = False) -> list[Row]:
    """The rows to compare with."""
    return [Row("redis", "prefork", stop, 30 if long else 10, plain=True) for stop in Stop]


# --- the load ---


def steady_port() -> int:
    """A free port that no client's end of a connection ever gets (ip(7), ip_local_port_range).

    While no dyno listens, a client that tries to connect to a port of that range may end up with itself.
    """
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(10_000, 30_000)))
            return probe.getsockname()[1]


def orders(form: Form, grace: float, seed: str) -> Iterator[dict[str, Any]]:
    """Jobs without end, the same ones for the same seed: most take up to 2 s, some more, some more than the grace."""
    chance = random.Random(f"{SEED} {seed}")
    for number in count():
        if number % 10 == 0:
            seconds = chance.uniform(min(grace, form.longest * 0.7), form.longest)
        elif number % 5 == 3:
            seconds = chance.uniform(2, max(grace - SHORTER, 4))
        else:
            seconds = chance.uniform(0, 2)
        yield {"kind": chance.choice(("sleep", "sleep", "io")), "seconds": round(seconds, 2)}


@dataclass
class Request:
    """One request; times by time.monotonic(). `fault` tells why there was no good answer to it."""

    what: str
    sent: float
    ended: float = 0.0
    status: int = 0
    fault: str = ""

    def came_late(self, stops: list[float]) -> bool:
        """Whether it was sent within LATE after a stop's signal, and its connection was reset.

        It was not in flight at the signal. A socket that several processes listen on can't be closed without a
        moment in which the kernel still takes a connection that nobody will serve: WEB_LINGER is for that.
        """
        after = min((self.sent - stop for stop in stops if stop < self.sent), default=LATE)
        return after < LATE and self.fault.startswith(("ConnectionReset", "RemoteDisconnected", "BrokenPipe"))

    def told(self, stops: list[float]) -> str:
        """What went wrong, and when, seen from the last of the stops before."""
        before = [stop for stop in stops if stop < self.ended]
        if not before:
            return f"{self.what}: {self.fault}, before any stop"
        sent, ended = (moment - before[-1] for moment in (self.sent, self.ended))
        return f"{self.what}: {self.fault}, sent {sent:+.3f} s from a stop and ended {ended:+.3f} s from it"


class Refused(Exception):  # noqa: N818 (no error: nobody listens)
    """The connection was refused."""


class Client:
    """Sends requests over one connection as long as the server keeps it, or over a new one for each."""

    def __init__(self, port: int, *, keep: bool) -> None:
        self._port = port
        self._keep = keep
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, body: bytes = b"", pause: float = 0) -> tuple[Request, bytes]:
        """Send a request, after a half of its body for `pause` seconds nothing. Raises Refused."""
        connection, kept = self._connect()
        how = f"{'kept' if kept else 'new'} connection{', in two parts' if pause else ''}"
        request = Request(f"{method} {path} ({how})", time.monotonic())
        answer = b""
        try:
            request.sent = self._send(connection, method, path, body, pause)
            response = connection.getresponse()
            answer = response.read()
            request.status = response.status
            if response.status >= 500:
                request.fault = f"answered {response.status}"
            if not self._keep or response.will_close:
                self.close()
        except (OSError, http.client.HTTPException) as error:
            request.fault = f"{type(error).__name__}: {error}"
            self.close()
        request.ended = time.monotonic()
        return request, answer

    def _connect(self) -> tuple[http.client.HTTPConnection, bool]:
        """The kept connection and True, or if the server has closed it a new one and False. Raises Refused."""
        if self._connection and select.select([self._connection.sock], [], [], 0)[0]:
            self.close()
        if self._connection:
            return self._connection, True
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.connect()
        except ConnectionRefusedError:
            raise Refused from None
        self._connection = connection
        return connection, False

    @staticmethod
    def _send(connection: http.client.HTTPConnection, method: str, path: str, body: bytes, pause: float) -> float:
        """Send a request; when its first bytes had left.

        Not the time before: this thread may have waited in between, and the server closes what is idle.
        """
        connection.putrequest(method, path)
        if body:
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", str(len(body)))
        half = len(body) // 2 if pause else len(body)
        connection.endheaders(body[:half] or None)
        sent = time.monotonic()
        if pause:
            time.sleep(pause)
            connection.send(body[half:])
        return sent

    def close(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None


class Load:
    """Clients at work from start() to stop(); `hurry` lets those that ask for pages do so without a pause."""

    def __init__(self, port: int, jobs: Iterator[dict[str, Any]], rate: float) -> None:
        self.requests: list[Request] = []
        self.accepted: dict[int, float] = {}  # seconds of each job by its id
        self.unanswered = 0  # orders that may or may not have arrived
        self.up = False  # whether a refused connection is a fault
        self.hurry = threading.Event()
        self._port = port
        self._jobs = jobs
        self._lock = threading.Lock()
        self._over = threading.Event()
        browsers = [(self._browse, (keep, number)) for number in range(3) for keep in (True, False)]
        customers = [(self._order, (keep, 2 / rate, pause)) for keep, pause in ((True, 0.0), (False, 0.3))]
        self._threads = [threading.Thread(target=run, args=words, daemon=True) for run, words in browsers + customers]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        self.hurry.set()
        for thread in self._threads:
            if thread.ident:  # it was started
                thread.join()

    def in_flight(self, moment: float) -> int:
        """Requests that had been sent and not been answered at that time."""
        return sum(request.sent <= moment < request.ended for request in self.requests)

    def faults(self, stops: list[float]) -> list[str]:
        return [request.told(stops) for request in self.requests if request.fault and not request.came_late(stops)]

    def late(self, stops: list[float]) -> int:
        """Requests that were sent after a signal and found nobody."""
        return sum(request.came_late(stops) for request in self.requests if request.fault)

    def _browse(self, keep: bool, number: int) -> None:
        client = Client(self._port, keep=keep)
        for turn in count(number):
            with self._lock:
                jobs = list(self.accepted)[-50:]
            path = f"/jobs/{random.choice(jobs)}" if jobs and turn % 10 else "/"
            self._ask(client, "GET", path)
            if self._over.is_set():
                break
            self.hurry.wait(PACE)
        client.close()

    def _order(self, keep: bool, pace: float, pause: float) -> None:
        client = Client(self._port, keep=keep)
        order = None
        while not self._over.wait(pace - pause):
            with self._lock:
                order = order or next(self._jobs)
            request, answer = self._ask(client, "POST", "/jobs", json.dumps(order).encode(), pause)
            if not request:
                continue
            if request.status == 202:
                with self._lock:
                    self.accepted |= dict.fromkeys(json.loads(answer)["ids"], order["seconds"])
            elif request.fault:
                self.unanswered += 1
            order = None
        client.close()

    def _ask(self, client: Client, *what: Any) -> tuple[Request | None, bytes]:
        """One request; None for one that was never sent, because nobody listens."""
        up, now = self.up, time.monotonic()
        try:
            request, answer = client.ask(*what)
        except Refused:
            if up and self.up:
                self.requests.append(Request(f"{what[0]} {what[1]}", now, now, fault="refused by a running dyno"))
            self._over.wait(PACE)
            return None, b""
        self.requests.append(request)
        return request, answer


# --- what there is to look into ---


@dataclass(frozen=True)
class Job:
    """A job as the database has it. `started` is when it last started, by the database's clock."""

    seconds: float
    state: str
    runs: int
    started: float
    error: str


class Ledger:
    """The database of a row."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)

    def close(self) -> None:
        self._connection.close()

    def jobs(self) -> dict[int, Job]:
        query = "SELECT id, seconds, state, runs, coalesce(extract(epoch FROM started), 0), error FROM demo_job"
        return {row[0]: Job(row[1], row[2], row[3], float(row[4]), row[5]) for row in self._connection.execute(query)}

    def running(self) -> dict[int, Job]:
        return {key: job for key, job in self.jobs().items() if job.state == "running"}

    def unfinished(self) -> dict[int, Job]:
        return {key: job for key, job in self.jobs().items() if job.state != "done"}

    def now(self) -> float:
        (now,) = self._connection.execute("SELECT extract(epoch FROM clock_timestamp())").fetchone()
        return float(now)

    def messages(self) -> int:
        return self._connection.execute(f"SELECT count(*) FROM pgmq.q_{QUEUE}").fetchone()[0]


@dataclass(frozen=True)
class Broker:
    """What carries the queue; `url` is for Redis and RabbitMQ."""

    kind: str
    url: str = ""

    def environ(self) -> dict[str, str]:
        return {"redis": {"REDIS_URL": self.url}, "rabbitmq": {"AMQP_URL": self.url}}.get(self.kind, {})

    def clear(self) -> None:
        if self.kind == "redis":
            redis.Redis.from_url(self.url).flushdb()
        elif self.kind == "rabbitmq":
            with self._amqp() as connection:
                connection.channel().queue_delete(QUEUE)

    def messages(self, ledger: Ledger) -> int:
        """Messages that the broker has or keeps for somebody; to be asked when no dyno runs."""
        if self.kind == "redis":
            client = redis.Redis.from_url(self.url)
            return client.llen(QUEUE) + client.hlen("unacked")
        if self.kind == "rabbitmq":
            with self._amqp() as connection:
                return connection.channel().queue_declare(QUEUE, passive=True).message_count
        return ledger.messages()

    def _amqp(self) -> amqp.Connection:
        parts = urlsplit(self.url)
        return amqp.Connection(f"{parts.hostname}:{parts.port}", userid="guest", password="guest")


# --- one row ---


@dataclass
class Result:
    """What became of the load of one row. Times are seconds."""

    row: Row
    endings: list[Ending] = field(default_factory=list)
    again: list[float] = field(default_factory=list)  # from the next dyno's start to a job that was put back
    accepted: int = 0
    unanswered: int = 0
    done: int = 0
    twice_short: int = 0
    twice_long: int = 0
    lost: int = 0
    stuck: int = 0  # not done, but the broker has a message still
    unfinished: list[str] = field(default_factory=list)
    requests: int = 0
    in_flight: int = 0
    faults: list[str] = field(default_factory=list)
    late: int = 0

    def complaints(self) -> list[str]:
        """What must not be: one line each."""
        found = {
            f"{self.lost} jobs lost, {self.stuck} stuck: {self.unfinished[:5]}": self.lost + self.stuck,
            f"{self.twice_short} jobs shorter than the grace - {SHORTER:g} s ran twice": self.twice_short,
            f"{len(self.faults)} requests failed: {sorted(set(self.faults))[:5]}": len(self.faults),
            f"no job was put back and no request was in flight: {self.again}, {self.in_flight}": not (
                self.again and self.in_flight
            ),
            f"jobs that were put back ran again only after {self.again} s": max(self.again, default=0) > AGAIN,
        }
        for ending in self.endings:
            found |= {
                f"exit code {ending.returncode}": ending.returncode,
                f"SIGKILL was needed after {ending.seconds:.1f} s": ending.killed,
                f"left over: {ending.left_over}": ending.left_over,
            }
        return [text for text, wrong in found.items() if wrong]

    def cells(self) -> list[str]:
        """Its cells of the table."""
        row, loaded = self.row, self.endings[:-1]  # the last dyno had nothing to do any more
        seconds = [ending.seconds for ending in loaded]
        again = f"{max(self.again):.1f}" if self.again else "-"
        return [
            f"{BASELINE}, {row.broker}" if row.plain else row.broker,
            row.pool,
            row.stop,
            f"{row.grace:g}",
            str(len(loaded)),
            str(self.accepted),
            str(self.done),
            str(self.twice_short),
            str(self.twice_long),
            f"{self.lost} + {self.stuck}" if self.stuck else str(self.lost),
            str(self.requests),
            str(self.in_flight),
            str(len(self.faults)),
            str(self.late),
            f"{median(seconds):.1f} / {max(seconds):.1f}" if seconds else "-",
            again.replace("inf", "never"),
            " ".join(sorted({str(ending.returncode) for ending in self.endings})),
            str(sum(ending.killed for ending in self.endings)),
            str(sum(len(ending.left_over) for ending in self.endings)),
        ]


HEADS = (
    "broker",
    "pool",
    "stopped by",
    "grace s",
    "stops",
    "jobs accepted",
    "done",
    "run twice, short",
    "run twice, long",
    "lost",
    "requests",
    "in flight at a stop",
    "failed",
    "sent after the signal, reset",
    "exit after s, median / max",
    "put back runs again after s, max",
    "exit codes",
    "SIGKILLs",
    "left over",
)


class Honcho(Dyno):
    """Plain honcho in the place of the boiler."""

    @property
    def boil(self) -> list[str]:
        return [str(Path(sys.executable).parent / "honcho")]

    def is_healthy(self) -> bool:
        """It has no boiler for /healthz to ask."""
        with suppress(OSError, http.client.HTTPException):
            return self.get("/jobs/1", timeout=10)[0] in (200, 404)
        return False


@dataclass(frozen=True)
class Place:
    """What a row has for itself: a folder with a checkout, an empty database, a broker."""

    folder: Path
    database: str
    broker: Broker


class Cycling:
    """Runs one row."""

    # One start at a time: rows that run at once would slow down each other's.
    starting = threading.Lock()

    def __init__(self, row: Row, form: Form, place: Place, say: Say) -> None:
        self.row = row
        self.form = form
        self.folder = place.folder
        self.result = Result(row)
        self._say = say
        self._broker = place.broker
        self._port = steady_port()
        self._environ = {
            **DEFAULTS,
            **SIZES,
            **self._broker.environ(),
            "DATABASE_URL": place.database,
            "PORT": str(self._port),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "BIND_ADDRESS": "127.0.0.1",
            "DJANGO_SECRET_KEY": KEY,
            "DJANGO_HTTPS": "0",
            "WORKER_CONCURRENCY": str(SLOTS),
            "DYNO_GRACE": f"{row.grace:g}",
            "JOBS_KEPT": "1000000",
        }
        del self._environ["BOILER_DIR"]
        self._ledger = Ledger(place.database)
        self._load = Load(self._port, orders(form, row.grace, str(row)), form.rate)
        self._dynos: list[Dyno] = []

    def run(self) -> Result:
        """Cycle dynos until all is done."""
        self._broker.clear()
        put_back: dict[int, Job] = {}
        try:
            for cycle in range(self.form.cycles):
                put_back = self._cycle(cycle + 1, put_back)
            self._load.stop()
            dyno = self._start(put_back)
            self._finish()
            self._stop(dyno)
        finally:
            self._load.stop()
            for dyno in self._dynos:
                dyno.kill()
            self._count()
            self._ledger.close()
        return self.result

    def _cycle(self, number: int, put_back: dict[int, Job]) -> dict[int, Job]:
        """One dyno from its start to its stop; returns the jobs that were still running then."""
        dyno = self._start(put_back)
        if number == 1:
            self._load.start()
        before = len(self._load.accepted)
        wait_for(
            lambda: len(self._load.accepted) >= before + self.form.jobs,
            f"{self.form.jobs} jobs are accepted",
            30 + 3 * self.form.jobs / self.form.rate,
        )
        self._hold_jobs_of_both_lengths()
        before = len(self._load.requests)
        self._load.hurry.set()
        wait_for(lambda: len(self._load.requests) >= before + 50, "the clients are at full speed")
        ending = self._stop(dyno)
        self._load.hurry.clear()
        left = self._ledger.running()
        words = f"stop {number} of {self.form.cycles}: {ending.seconds:.1f} s, exit code {ending.returncode}"
        self._say(f"{self.row}: {words}, {len(self._ledger.unfinished())} jobs left, {len(left)} of them were running")
        return left

    def _hold_jobs_of_both_lengths(self) -> None:
        """Wait for a moment when one job can't be finished within the grace and another one can."""

        def both() -> bool:
            lengths = [job.seconds > self.row.grace for job in self._ledger.running().values()]
            return True in lengths and False in lengths

        with suppress(AssertionError):  # a stop at any other moment is a test as well
            wait_for(both, "a long and a short job are running", 10)

    def _start(self, put_back: dict[int, Job]) -> Dyno:
        """The next dyno, serving, when the jobs that the last one put back run again or should have."""
        folder = self.folder / f"dyno{len(self._dynos) + 1}"
        dyno = (Honcho if self.row.plain else Dyno)(folder, self._environ, self.folder / "checkout")
        self._dynos.append(dyno)
        with self.starting:
            began = self._ledger.now()
            dyno.start(*(["-f", "LocalProcfile"] if self.row.plain else []))
            dyno.wait_until_healthy()
            self._load.up = True
            self._await(put_back, began)
        return dyno

    def _await(self, put_back: dict[int, Job], began: float) -> None:
        """Measure how long after the start of the dyno, by the database's clock, these jobs run again."""
        again: dict[int, float] = {}

        def all_again() -> bool:
            jobs = self._ledger.jobs()
            for key, job in put_back.items():
                if jobs[key].runs > job.runs:
                    again.setdefault(key, jobs[key].started - began)
            return len(again) == len(put_back) or self._ledger.now() > began + AGAIN

        wait_for(all_again, "what was put back runs again")
        self.result.again += [again.get(key, math.inf) for key in put_back]

    def _stop(self, dyno: Dyno) -> Ending:
        """Stop it as its platform does."""
        self._load.up = False
        ending = dyno.cycle(self.row.stop, self.row.grace)
        dyno.kill()  # what is left over would keep the port
        self.result.endings.append(ending)
        self.result.in_flight += self._load.in_flight(ending.began)
        return ending

    def _finish(self) -> None:
        """Wait until every job is done, or nothing has happened for longer than the longest job takes."""
        patience = self.form.longest + 20
        seen, since = None, time.monotonic()
        while unfinished := self._ledger.unfinished():
            state = {key: (job.state, job.runs) for key, job in unfinished.items()}
            if state != seen:
                seen, since = state, time.monotonic()
            elif time.monotonic() - since > patience:
                return
            time.sleep(0.1)

    def _count(self) -> None:
        result, load, jobs = self.result, self._load, self._ledger.jobs()
        unfinished = {key: job for key, job in jobs.items() if job.state != "done"}
        twice = [job.seconds < self.row.grace - SHORTER for job in jobs.values() if job.runs > 1]
        result.accepted, result.unanswered = len(load.accepted), load.unanswered
        result.done = sum(jobs[key].state == "done" for key in load.accepted if key in jobs)
        result.twice_short, result.twice_long = twice.count(True), twice.count(False)
        result.unfinished = [f"{key}: {job}" for key, job in unfinished.items()]
        missing = len(unfinished) + len(load.accepted.keys() - jobs.keys())
        result.stuck = min(missing, self._broker.messages(self._ledger) if missing else 0)
        result.lost = missing - result.stuck
        result.requests = len(load.requests)
        stops = [ending.began for ending in result.endings]
        result.faults, result.late = load.faults(stops), load.late(stops)


# --- all rows ---


def checkout(place: Path, row: Row) -> None:
    """A copy of the checkout that runs the row's pool, or what is usual."""
    shutil.copytree(ROOT / "app", place / "app", ignore=shutil.ignore_patterns("__pycache__", "staticfiles"))
    shutil.copy(ROOT / "Procfile", place)
    ours = (ROOT / "LocalProcfile").read_text()
    adapted, found = re.subn(r"--pool \w+", f"--pool {row.pool}", ours)
    assert found == 1, "LocalProcfile has no worker with --pool"
    (place / "LocalProcfile").write_text(PLAIN_PROCFILE if row.plain else adapted)
    if row.plain:
        config = place / "app" / "config"
        (config / "celery.py").write_text(PLAIN_CELERY)
        with (config / "settings.py").open("a") as settings:
            settings.write(PLAIN_SETTINGS)


def manage(place: Path, *words: str, **environ: str) -> None:
    """Run manage.py of a checkout."""
    environ = {**os.environ, **DEFAULTS, "DJANGO_SECRET_KEY": KEY, **environ}
    command = [sys.executable, str(place / "app" / "manage.py"), *words]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Lane:
    """The servers that some rows share, one after the other: a PostgreSQL and a broker."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._folder = folder
        self._numbers = count(1)

    @contextmanager
    def serving(self) -> Iterator[Lane]:
        """Run them for the length of a `with` block."""
        kind = "redis" if self._name == BASELINE else self._name
        with ExitStack() as stack:
            self._sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="boiler-soak-")))
            server = Embedded(self._sockets / "data", self._sockets)
            server.prepare(wait=0)
            stack.enter_context(server.serving())
            make = {"redis": servers.Redis, "rabbitmq": servers.RabbitMQ}.get(kind)
            self.broker = Broker(kind, stack.enter_context(make()).url if make else "")
            # Or it would complain in our own output of every worker that was killed.
            self._admin("ALTER SYSTEM SET log_min_messages = 'panic'")
            self._admin("SELECT pg_reload_conf()")
            self._admin("CREATE DATABASE template OWNER dyno")
            manage(ROOT, "migrate", "--noinput", DATABASE_URL=self._url("template"))
            yield self

    def run(self, row: Row, form: Form, say: Say) -> Result:
        """Run one row on a database and a checkout of its own."""
        name = f"row{next(self._numbers)}"
        folder = self._folder / str(row)
        checkout(folder / "checkout", row)
        manage(folder / "checkout", "collectstatic", "--noinput")
        self._admin(f"CREATE DATABASE {name} TEMPLATE template OWNER dyno")
        return Cycling(row, form, Place(folder, self._url(name), self.broker), say).run()

    def _url(self, name: str, user: str = "dyno") -> str:
        return f"postgresql://{user}@{quote(str(self._sockets), safe='')}/{name}"

    def _admin(self, statement: str) -> None:
        with psycopg.connect(self._url("postgres", "postgres"), autocommit=True) as connection:
            connection.execute(statement)


class Soak:
    """Runs rows in the background, `parallel` at a time, each lane in order; `result()` waits for one."""

    def __init__(self, chosen: Iterable[Row], form: Form, folder: Path, say: Say, parallel: int) -> None:
        self._form = form
        self._folder = folder
        self._say = say
        self._turns = threading.Semaphore(parallel)
        self._over = False
        self.futures: dict[Row, Future[Result]] = {row: Future() for row in chosen}
        lanes = dict.fromkeys(row.lane for row in self.futures)
        self._threads = [threading.Thread(target=self._drive, args=[lane]) for lane in lanes]
        for thread in self._threads:
            thread.start()

    def result(self, row: Row) -> Result:
        return self.futures[row].result()

    def results(self) -> list[Result]:
        """Those of all rows that came to an end; waits for them."""
        return [future.result() for future in self.futures.values() if not future.exception()]

    def close(self) -> None:
        """Wait for the rows that are running, and start no other."""
        self._over = True
        for thread in self._threads:
            thread.join()

    def _drive(self, name: str) -> None:
        mine = {row: future for row, future in self.futures.items() if row.lane == name}
        try:
            with Lane(name, self._folder).serving() as lane:
                for row, future in mine.items():
                    with self._turns:
                        self._attempt(lane, row, future)
        except BaseException as error:  # noqa: BLE001 (a skip of pytest's as well: whoever asks for the row gets it)
            self._say(f"{name}: {type(error).__name__}: {error}")
            for future in mine.values():
                if not future.done():
                    future.set_exception(error)

    def _attempt(self, lane: Lane, row: Row, future: Future[Result]) -> None:
        if self._over:
            future.set_exception(TimeoutError("the soak was ended before this row began"))
            return
        try:
            result = lane.run(row, self._form, self._say)
        except Exception as error:  # noqa: BLE001 (the other rows go on)
            self._say(f"{row}: {type(error).__name__}: {error}")
            future.set_exception(error)
            return
        self._say(f"{row}: {'; '.join(result.complaints()) or 'good'}")
        future.set_result(result)


def table(results: Iterable[Result]) -> str:
    """The results in Markdown."""
    lines = [HEADS, ["---"] * 4 + ["---:"] * (len(HEADS) - 4), *(result.cells() for result in results)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def made_with(form: Form) -> str:
    """The conditions under which a table was made, in a sentence or two."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "gunicorn", "gevent", "honcho"))
    return (
        f"{datetime.now().astimezone():%Y-%m-%d}, Python {platform.python_version()}, {packages}; "
        f"{SLOTS} jobs at once, jobs of 0-{form.longest:g} s, {os.cpu_count()} processors."
    )


def say(text: str) -> None:
    print(f"{datetime.now().astimezone():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Cycle dynos under load.")
    parser.add_argument("--long", action="store_true", default=bool(os.environ.get("SOAK")), help="also by SOAK=1")
    parser.add_argument("--only", default="", metavar="PATTERN", help="rows whose name matches, like redis-.*-pid1")
    parser.add_argument("--cycles", type=int, help="stops of each row under load")
    parser.add_argument("--parallel", type=int, default=2, help="rows at a time (default: 2)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table there as well")
    parser.add_argument("--folder", type=Path, help="keep the dynos' logs in this new folder")
    arguments = parser.parse_args(argv)
    form = LONG if arguments.long else SHORT
    if arguments.cycles:
        form = Form(arguments.cycles, form.jobs, form.longest, form.rate)
    chosen = [*rows(long=arguments.long), *plain_rows(long=arguments.long)]
    chosen = [row for row in chosen if re.search(arguments.only, str(row))]
    with ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        soak = Soak(chosen, form, folder, say, arguments.parallel)
        stack.callback(soak.close)
        results = soak.results()
    text = f"{made_with(form)}\n\n{table(results)}"
    print(text, end="")
    if arguments.output:
        arguments.output.write_text(text)
    wrong = [result.row for result in results if not result.row.plain and result.complaints()]
    return 1 if wrong or len(results) < len(chosen) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
