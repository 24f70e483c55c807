"""What is measured of one running layout, and how."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from boiler import processes
from tests.bench.client import Client, Sample, load
from tests.bench.layouts import LayoutDyno
from tests.platform import Stop
from tests.wait import wait_for

CONNECTIONS = 32
SETTLE = 3.0  # seconds from the first job's end until a dyno counts as idle
LOOK = 0.002  # seconds between two looks of a measurement
QUICK = b'{"kind": "sleep", "seconds": 0}'
START = 60.0  # seconds that a layout may take to start
DRAIN = 300.0  # seconds that the jobs of a storm may take

Figures = dict[str, float]


@dataclass(frozen=True)
class Lengths:
    """How long the stages of a run take, in seconds."""

    idle: float = 10.0
    hello: float = 6.0
    storm: float = 6.0
    busy: float = 4.0


class Ledger:
    """The database of a run, seen from outside."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True, application_name="bench")

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(query, values).fetchall()

    def number(self, query: str, *values: Any) -> float:
        (row,) = self.rows(query, *values)
        return float(row[0] or 0)

    def unfinished(self) -> int:
        return int(self.number("SELECT count(*) FROM demo_job WHERE state IN ('queued', 'running')"))

    def connections(self) -> int:
        """Connections to this database but for the bench's own."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name <> 'bench'"
        )
        return int(self.number(query))

    def close(self) -> None:
        self._connection.close()


class Run:
    """Measures the dynos of one layout; the first of them serves. `began` is when they were started."""

    def __init__(self, dynos: list[LayoutDyno], database: str, *, works: bool, lengths: Lengths, began: float) -> None:
        self._dynos = dynos
        self._database = database
        self._works = works
        self._lengths = lengths
        self._began = began
        self.figures: Figures = {}
        self.notes: list[str] = []

    @property
    def _url(self) -> str:
        return self._dynos[0].url

    def measure(self, say: Callable[[str], None]) -> None:
        """Take all figures, and stop the dynos. Raises AssertionError if the layout doesn't do its work."""
        self._ledger = Ledger(self._database)
        stages: list[tuple[str, Callable[[], None]]] = [("start", self._start)]
        if self._works:
            stages += [("idle", self._idle), ("hello", self._hello), ("storm", self._storm), ("busy", self._busy)]
        else:
            stages += [("hello", self._hello)]
        stages += [("stop", self._stop)]
        try:
            for name, stage in stages:
                say(name)
                stage()
        finally:
            self._ledger.close()

    def _start(self) -> None:
        wait_for_now(self._dynos[0].is_up, "the web answers", START)
        self.figures["first_200_s"] = time.monotonic() - self._began
        if self._works:
            (job,) = self._dynos[0].post("/jobs", json.loads(QUICK))[1]["ids"]
            done = "SELECT state = 'done' FROM demo_job WHERE id = %s"
            wait_for_now(lambda: self._ledger.number(done, job), "the first job is done", START)
            self.figures["first_job_s"] = time.monotonic() - self._began

    def _idle(self) -> None:
        time.sleep(SETTLE)
        supervisors = [pid for pid in self._pids() if is_supervisor(processes.title(pid))]
        before = sum(map(on_cpu, supervisors)), cpu_time(self._pids())
        time.sleep(self._lengths.idle)
        after = sum(map(on_cpu, supervisors)), cpu_time(self._pids())
        self.figures["idle_pss_mb"] = sum(map(processes.memory, self._pids())) / 1e6
        self.figures["supervisor_cpu_percent"] = (after[0] - before[0]) / self._lengths.idle * 100
        self.figures["idle_cpu_percent"] = (after[1] - before[1]) / self._lengths.idle * 100
        self.figures["job_start_ms"] = asyncio.run(self._job_start()) * 1000

    async def _job_start(self) -> float:
        """Seconds from an AJAX call to the job's start, while nothing else is to do: the median of 30."""
        client = Client(self._url)
        sent: dict[int, float] = {}
        for _ in range(30):
            now = time.time()
            _, body = await client.ask("POST", "/jobs", QUICK)
            sent[json.loads(body)["ids"][0]] = now
            await asyncio.sleep(0.1)
        client.close()
        self._drain()
        rows = self._ledger.rows(
            "SELECT id, extract(epoch FROM started)::float8 FROM demo_job WHERE id = ANY(%s)", list(sent)
        )
        return median(started - sent[job] for job, started in rows)

    def _hello(self) -> None:
        sample = asyncio.run(load(self._url, "GET", "/hello", connections=CONNECTIONS, seconds=self._lengths.hello))
        self._note_faults(sample, "hello")
        self.figures["hello_per_s"] = sample.rate
        self.figures["hello_p50_ms"] = sample.milliseconds(50)
        self.figures["hello_p99_ms"] = sample.milliseconds(99)

    def _storm(self) -> None:
        """Jobs by AJAX, as many as go, until all of them are done."""
        pids = self._pids()
        cpu = cpu_time(pids)
        last = self._ledger.number("SELECT max(id) FROM demo_job")
        with most(self._database) as connections:
            sample = asyncio.run(
                load(self._url, "POST", "/jobs", QUICK, connections=CONNECTIONS, seconds=self._lengths.storm)
            )
            self._drain()
        self._note_faults(sample, "jobs")
        accepted = sample.statuses[202]
        done, seconds = self._ledger.rows(
            "SELECT count(*), extract(epoch FROM max(finished) - min(created))::float8 "
            "FROM demo_job WHERE id > %s AND state = 'done'",
            last,
        )[0]
        self.figures["accepted_per_s"] = accepted / sample.seconds
        self.figures["done_per_s"] = done / seconds
        self.figures["jobs_lost"] = max(0, accepted - done)
        self.figures["db_connections"] = max(connections)
        self.figures["cpu_ms_per_job"] = (cpu_time(pids) - cpu) / done * 1000

    def _busy(self) -> None:
        """How fast the web answers while the queue is full of jobs for the CPU."""
        self._dynos[0].post("/jobs", {"kind": "cpu", "seconds": 0.02, "count": 300})
        sample = asyncio.run(load(self._url, "GET", "/hello", connections=4, seconds=self._lengths.busy, pause=0.01))
        if not self._ledger.unfinished():
            self.notes.append("busy: the queue ran empty meanwhile")
        self._note_faults(sample, "busy")
        self.figures["busy_hello_p99_ms"] = sample.milliseconds(99)
        self.figures["peak_pss_mb"] = sum(map(processes.memory, self._pids())) / 1e6
        self._drain()

    def _stop(self) -> None:
        time.sleep(1)
        endings = [dyno.cycle(Stop.PID1) for dyno in self._dynos]
        self.figures["stop_s"] = max(ending.seconds for ending in endings)
        self.notes += [f"stop: SIGKILL after {ending.seconds:.0f} s" for ending in endings if ending.killed]

    def _drain(self) -> None:
        wait_for(lambda: not self._ledger.unfinished(), "all jobs are done", DRAIN)

    def _pids(self) -> list[int]:
        return [pid for dyno in self._dynos for pid in dyno.container.pids()]

    def _note_faults(self, sample: Sample, what: str) -> None:
        bad = {status: number for status, number in sample.statuses.items() if status not in (200, 202)}
        if sample.broken or bad:
            self.notes.append(f"{what}: {sample.broken} requests broken, statuses {bad}")


def wait_for_now(condition: Callable[[], Any], what: str, seconds: float) -> None:
    """wait_for() that looks every LOOK seconds, so that what is timed is not rounded."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(LOOK)


@contextmanager
def most(database: str) -> Iterator[list[int]]:
    """Counts the database's connections again and again for the length of a `with` block."""
    over = threading.Event()
    counts = [0]

    def watch() -> None:
        ledger = Ledger(database)
        while not over.wait(0.2):
            counts.append(ledger.connections())
        ledger.close()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield counts
    finally:
        over.set()
        thread.join()


def is_supervisor(title: str) -> bool:
    """Whether a process is the boiler's or honcho's own."""
    return title.startswith("boiler:") or "honcho start" in title


def cpu_time(pids: list[int]) -> float:
    """Seconds of CPU that processes and their ended children have used, to 10 ms each (proc_pid_stat(5))."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / 100


def on_cpu(pid: int) -> float:
    """Seconds that a process's threads were on a CPU, exactly; its children left out."""
    with suppress(OSError):
        return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
    return 0.0
