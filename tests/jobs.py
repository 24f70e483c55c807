"""What the tests of app/jobs share: a migrated database, its queue seen from outside, and inner processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

from boiler.settings import ROOT
from tests.dyno import SIZES
from tests.wait import wait_for

APP = ROOT / "app"
TASKS = "tests.jobs_tasks"
WORKER = (
    "-m",
    "celery",
    "--skip-checks",
    "--workdir",
    str(APP),
    "--app",
    "config",
    "worker",
    "--without-gossip",
    "--without-mingle",
    "--without-heartbeat",
)
BEAT = ("-m", "celery", "--workdir", str(APP), "--app", "config", "beat")
WEB = ("-m", "gunicorn", "--config", str(APP / "config" / "gunicorn.py"))


class Queue:
    """The database of a test, and the queue in it."""

    def __init__(self, url: str, admin: str) -> None:
        self.url = url
        self.name = url.rpartition("/")[2]
        self.admin = admin

    def rows(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True, application_name="test") as connection:
            cursor = connection.execute(query, params)
            return cursor.fetchall() if cursor.description else []

    def size(self) -> int:
        """Messages on the queue, hidden ones included."""
        return self.rows("SELECT count(*) FROM pgmq.q_celery")[0][0]

    def visible(self) -> int:
        return self.rows("SELECT count(*) FROM pgmq.q_celery WHERE vt <= clock_timestamp()")[0][0]

    def sent(self) -> Counter[str]:
        """How many messages there are for each task."""
        return Counter(name for (name,) in self.rows("SELECT message->'headers'->>'task' FROM pgmq.q_celery"))

    def connections(self) -> Counter[str]:
        """Client connections by the name of their process."""
        rows = self.rows(
            "SELECT split_part(application_name, ' ', 1) FROM pg_stat_activity "
            "WHERE datname = current_database() AND backend_type = 'client backend' AND application_name <> 'test'"
        )
        return Counter(name for (name,) in rows)

    def cut(self, seconds: float) -> None:
        """What clients see of a restart of PostgreSQL: connections end, and new ones are refused for a while."""
        with psycopg.connect(self.admin, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS false")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [self.name])
            time.sleep(seconds)
            connection.execute(f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS true")


class Process:
    """A Python process with the test's settings and a log."""

    def __init__(self, folder: Path, command: tuple[str, ...], environ: dict[str, str]) -> None:
        self.log_file = folder / f"{time.monotonic_ns()}.log"
        with self.log_file.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": f"{APP}:{ROOT}", "LOG_LEVEL": "info", **SIZES, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def says(self, text: str, seconds: float = 30) -> Process:
        """Wait for a text in the log."""
        try:
            wait_for(lambda: text in self.log() or self.popen.poll() is not None, repr(text), seconds)
            assert text in self.log()
        except AssertionError:
            raise AssertionError(f"not said: {text!r}\n{self.log()[-4000:]}") from None
        return self

    def titles(self) -> list[str]:
        """The title of the process and of its children, as `ps` shows them."""
        out = subprocess.run(["ps", "-o", "pid=,ppid=,args=", "-A"], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 2) for line in out.splitlines()]
        return [row[2] for row in rows if len(row) == 3 and str(self.pid) in row[:2]]

    def children(self) -> list[int]:
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    def stop(self, seconds: float = 20, number: int = signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there after {seconds} s\n{self.log()[-4000:]}") from None

    def kill(self) -> None:
        """SIGKILL to the process and everything in its group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()


def migrate(url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(APP / "manage.py"), "migrate", "--noinput"]
    environ = {**os.environ, "DATABASE_URL": url}
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def url_of(postgres: str, name: str) -> str:
    """The URL of a database for the role that is no superuser."""
    return f"{postgres.replace('//postgres@', '//dyno@')}{name}"


class Diary:
    """What the tasks of tests/jobs_tasks.py wrote down."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.touch()

    def entries(self, what: str) -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in self.file.read_text().splitlines()]
        return [entry for entry in entries if entry["what"] == what]

    def names(self, what: str) -> Counter[str]:
        return Counter(entry["name"] for entry in self.entries(what))


def call(queue: Queue, code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Django process of its own, on the test's database, with the tasks at hand as `tasks`."""
    prelude = f"import django; django.setup(); from {TASKS.rpartition('.')[0]} import jobs_tasks as tasks\n"
    env = {**os.environ, "PYTHONPATH": f"{APP}:{ROOT}", "DATABASE_URL": queue.url, **environ}
    return subprocess.run(
        [sys.executable, "-c", prelude + code], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
