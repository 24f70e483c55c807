"""The live feed of a packed dyno: many who watch, none who hold up its stop."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.dyno import Dyno
from tests.platform import Limits
from tests.wait import wait_for

STREAMS = 500
REQUEST = b"GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"


class Watcher:
    """One visitor's stream: the ids of the jobs whose end it was told of."""

    def __init__(self) -> None:
        self.ended: set[int] = set()
        self.frames = 0
        self.status = 0
        self.is_over = False

    async def watch(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        writer.write(REQUEST)
        try:
            self.status = int((await reader.readline()).split()[1])
            while line := await reader.readline():
                if line.startswith(b"data: "):
                    self.frames += 1
                    self.ended |= {job[0] for job in json.loads(line[6:]).get("ended", [])}
        finally:
            self.is_over = True
            writer.close()


async def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.1)


@pytest.fixture
def small_dyno(database_url: str, tmp_path: Path):
    dyno = Dyno(tmp_path / "small", {"DATABASE_URL": database_url})
    dyno.limits = Limits(memory=512 << 20, cpus=1)
    dyno.start("--release").wait_until_healthy()
    yield dyno
    dyno.kill()


def test_500_visitors_watch_a_dyno_of_512_mb_while_jobs_go_on(small_dyno: Dyno) -> None:
    watchers = [Watcher() for _ in range(STREAMS)]

    async def watch() -> list[int]:
        tasks = [asyncio.create_task(one.watch(small_dyno.port)) for one in watchers]
        await until(lambda: all(one.frames for one in watchers), "every visitor sees something")
        jobs = []
        for _ in range(10):
            order = {"kind": "sleep", "seconds": 0.01, "count": 20}
            status, answer = await asyncio.to_thread(small_dyno.post, "/jobs", order)
            assert status == 202
            jobs += answer["ids"]
        await until(lambda: all(one.ended >= set(jobs) for one in watchers), "every visitor saw every job's end")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return jobs

    jobs = asyncio.run(watch())
    assert len(jobs) == 200
    assert {one.status for one in watchers} == {200}
    status = small_dyno.status()
    assert [process["restarts"] for process in status["processes"]] == [0, 0, 0]
    everything = [status["boiler"], *status["images"], *status["processes"]]
    assert sum(one["memory"] for one in everything) < 512 << 20


def test_an_open_stream_ends_at_once_when_the_dyno_is_stopped(dyno: Dyno) -> None:
    watchers = [Watcher() for _ in range(10)]

    async def watch() -> float:
        tasks = [asyncio.create_task(one.watch(dyno.port)) for one in watchers]
        await until(lambda: all(one.frames for one in watchers), "every visitor sees something")
        ending = await asyncio.to_thread(dyno.cycle)
        await asyncio.gather(*tasks)
        assert ending.returncode == 0
        assert not ending.killed
        return ending.seconds

    # The grace is 30 s, of which requests in flight may take 25.
    assert asyncio.run(watch()) < 15
    assert all(one.is_over for one in watchers)


def test_the_database_is_left_alone_when_nobody_watches(dyno: Dyno, database_url: str) -> None:
    def asked() -> int:
        query = (
            "SELECT min(extract(epoch FROM clock_timestamp() - query_start)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name LIKE 'web%'"
        )
        with psycopg.connect(database_url) as connection:
            return connection.execute(query).fetchone()[0]

    async def look_in() -> None:
        watcher = Watcher()
        task = asyncio.create_task(watcher.watch(dyno.port))
        await until(lambda: watcher.frames > 1, "the visitor sees something")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(look_in())
    wait_for(lambda: asked() > 3, "the last look at the jobs is 3 s ago")
