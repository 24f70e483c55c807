"""Inner processes on a migrated database of the test's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests import docker
from tests.jobs import TASKS, WORKER, Diary, Process, Queue, migrate, url_of


@pytest.fixture(scope="session")
def migrated(postgres: str) -> str:
    """The name of a migrated database, to be copied."""
    name = f"template_{os.urandom(4).hex()}"
    with psycopg.connect(postgres + "postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} OWNER dyno")
    done = migrate(url_of(postgres, name))
    assert done.returncode == 0, done.stderr
    return name


@pytest.fixture
def queue(postgres: str, migrated: str) -> Iterator[Queue]:
    """A migrated database of the test's own, without the demo's schedule."""
    name = f"test_{os.urandom(4).hex()}"
    admin = postgres + "postgres"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {migrated} OWNER dyno")
    queue = Queue(url_of(postgres, name), admin)
    queue.rows("DELETE FROM django_celery_beat_periodictask")
    yield queue
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def start(queue: Queue, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start processes on the test's database: `start(*WORKER, WORKER_CONCURRENCY="1")`; all end with the test."""
    processes: list[Process] = []

    def start_process(*command: str, **environ: str) -> Process:
        processes.append(Process(tmp_path, command, {"DATABASE_URL": queue.url, **environ}))
        return processes[-1]

    yield start_process
    for process in processes:
        process.kill()


@pytest.fixture
def start_worker(start: Callable[..., Process]) -> Callable[..., Process]:
    """Start a Celery worker that knows tests/jobs_tasks.py, and wait until it is ready."""

    def start_ready(*words: str, **environ: str) -> Process:
        return start(*WORKER, "--include", TASKS, "--pool", *(words or ("prefork",)), **environ).says("ready.")

    return start_ready


@pytest.fixture
def diary(tmp_path: Path) -> Diary:
    return Diary(tmp_path / "diary")


@pytest.fixture(scope="session")
def app_image() -> Iterator[str]:
    """The tag of a Docker image of this checkout; Docker's engine runs as long as the tests do."""
    with docker.engine():
        yield docker.app_image()
