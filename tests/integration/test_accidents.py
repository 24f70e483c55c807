"""Accidents: whatever is killed, no accepted job is lost, and the dyno recovers by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.dyno import Dyno, alive
from tests.needs import needs
from tests.soak import Broker
from tests.wait import wait_for

pytestmark = pytest.mark.timeout(300)
BROKERS = ["pgmq", "redis", "rabbitmq"]
SERVERS = {"redis": servers.Redis, "rabbitmq": servers.RabbitMQ}
VARIABLES = {"redis": "REDIS_URL", "rabbitmq": "AMQP_URL"}
StartDyno = Callable[..., Dyno]


@pytest.fixture(scope="module")
def broker_urls() -> Iterator[Callable[[str], dict[str, str]]]:
    """The setting that selects a broker, which is empty then; each server starts when the first test asks for it."""
    with ExitStack() as stack:
        started: dict[str, dict[str, str]] = {"pgmq": {}}

        def setting(name: str) -> dict[str, str]:
            if name not in started:
                started[name] = {VARIABLES[name]: stack.enter_context(SERVERS[name]()).url}
            # What a test before has left would run again, as a job of this one: their numbers are the same.
            Broker(name, started[name].get(VARIABLES.get(name, ""), "")).clear()
            return started[name]

        yield setting


def post(dyno: Dyno, **order: Any) -> list[int]:
    status, answer = dyno.post("/jobs", order)
    assert status == 202, answer
    return answer["ids"]


def job(dyno: Dyno, number: int) -> dict[str, Any]:
    return dyno.get(f"/jobs/{number}")[1]


def running(dyno: Dyno, number: int, runs: int = 1) -> dict[str, Any]:
    """The job once it runs for the `runs`th time."""

    def started() -> dict[str, Any] | None:
        found = job(dyno, number)
        return found if found["state"] == "running" and found["runs"] >= runs else None

    return wait_for(started, f"job {number} runs ({runs})", 60)


def wait_done(dyno: Dyno, *numbers: int) -> None:
    wait_for(lambda: all(job(dyno, number)["state"] == "done" for number in numbers), "the jobs are done", 60)


@pytest.mark.parametrize("broker", BROKERS)
def test_a_job_whose_pool_child_is_killed_runs_again(
    start_dyno: StartDyno, broker_urls: Callable[[str], dict[str, str]], broker: str
) -> None:
    dyno = start_dyno(**broker_urls(broker)).wait_until_healthy()
    first, second = post(dyno, kind="sleep", seconds=3, count=2)
    running(dyno, second)
    os.kill(running(dyno, first)["pid"], signal.SIGKILL)
    wait_done(dyno, first, second)
    assert [job(dyno, number)["runs"] for number in (first, second)] == [2, 1]


def test_a_job_whose_pool_child_the_oom_killer_takes_runs_again(dyno: Dyno) -> None:
    """The child is moved into a cgroup with next to no memory: the next pages that it writes to end it."""
    memory = Path("/sys/fs/cgroup/memory")
    if not os.access(memory / "cgroup.procs", os.W_OK):
        pytest.skip("makes a cgroup (v1) with a memory limit: needs root on a machine that has them")
    group = memory / f"boiler-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text("4096")
        (number,) = post(dyno, kind="sleep", seconds=2)
        (group / "cgroup.procs").write_text(str(running(dyno, number)["pid"]))
        wait_done(dyno, number)
        assert job(dyno, number)["runs"] == 2
        assert "oom_kill 1" in (group / "memory.oom_control").read_text()
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text(), "the cgroup is empty")
        group.rmdir()


@pytest.mark.parametrize("broker", BROKERS)
def test_a_job_whose_worker_is_killed_runs_again(
    start_dyno: StartDyno, broker_urls: Callable[[str], dict[str, str]], broker: str
) -> None:
    dyno = start_dyno(**broker_urls(broker)).wait_until_healthy()
    (number,) = post(dyno, kind="sleep", seconds=3)
    running(dyno, number)
    os.kill(dyno.inner("worker")["pid"], signal.SIGKILL)
    began = time.monotonic()
    running(dyno, number, runs=2)
    print(f"{broker}: again after {time.monotonic() - began:.1f} s")
    wait_done(dyno, number)


@pytest.mark.parametrize("broker", BROKERS)
def test_a_job_whose_dyno_is_killed_runs_in_the_next(
    start_dyno: StartDyno, broker_urls: Callable[[str], dict[str, str]], broker: str
) -> None:
    setting = broker_urls(broker)
    dyno = start_dyno(**setting).wait_until_healthy()
    numbers = post(dyno, kind="sleep", seconds=2, count=5)
    running(dyno, numbers[0])
    dyno.kill()
    following = start_dyno(**setting).wait_until_healthy()
    wait_done(following, *numbers)


@pytest.mark.parametrize("broker", BROKERS)
def test_a_job_longer_than_its_lease_runs_once(
    start_dyno: StartDyno, broker_urls: Callable[[str], dict[str, str]], broker: str
) -> None:
    dyno = start_dyno(**broker_urls(broker)).wait_until_healthy()
    (number,) = post(dyno, kind="sleep", seconds=25)
    wait_for(lambda: job(dyno, number)["state"] == "done", "a job of 25 s is done", 60)
    assert job(dyno, number)["runs"] == 1


@pytest.mark.parametrize("broker", BROKERS)
def test_a_job_that_kills_its_worker_every_time_is_parked(
    start_dyno: StartDyno, broker_urls: Callable[[str], dict[str, str]], broker: str
) -> None:
    dyno = start_dyno(JOBS_STARTS="3", **broker_urls(broker)).wait_until_healthy()
    (number,) = post(dyno, kind="sleep", seconds=30)
    for start in (1, 2, 3):
        os.kill(running(dyno, number, runs=start)["pid"], signal.SIGKILL)
    wait_for(lambda: job(dyno, number)["state"] == "failed", "the job has failed", 60)
    assert "started 3 times without an end" in job(dyno, number)["error"]

    def manage(*words: str) -> str:
        command = [*dyno.boil, "run", "python", "app/manage.py", *words]
        return subprocess.run(command, env=dyno.environ, capture_output=True, text=True, check=True).stdout

    (row,) = [line for line in manage("parked").splitlines() if "demo.tasks.run" in line]
    assert f"[{number}, " in row
    assert "thrown away" in manage("parked", "--discard", row.split()[0])
    assert "no job is parked" in manage("parked")
    (number,) = post(dyno, kind="sleep", seconds=0)
    wait_done(dyno, number)


def test_postgresql_restarted_under_load_loses_no_job(tmp_path: Path) -> None:
    with servers.Postgres15() as server, ExitStack() as stack:
        dyno = Dyno(tmp_path / "dyno", {"DATABASE_URL": server.url})
        stack.callback(dyno.kill)
        dyno.start("--release").wait_until_healthy()
        accepted = []
        for round_number in range(40):
            status, answer = dyno.post("/jobs", {"kind": "sleep", "seconds": 0.2})
            if status == 202:
                accepted += answer["ids"]
            else:
                assert status == 503, answer
            if round_number == 20:
                server.stop()
                health = wait_for(lambda: (found := dyno.get("/healthz"))[0] == 503 and found[1], "/healthz says so")
                assert any("The database" in reason for reason in health["reasons"])
                server.start()
                wait_for(dyno.is_healthy, "/healthz answers 200 again")
        assert len(accepted) >= 38
        wait_done(dyno, *accepted)
        assert all(one["restarts"] == 0 for one in dyno.status()["processes"])


@pytest.mark.parametrize("name", ["redis", "rabbitmq"])
def test_a_broker_that_is_gone_for_20_seconds_loses_no_accepted_job(start_dyno: StartDyno, name: str) -> None:
    with SERVERS[name]() as server:
        dyno = start_dyno(**{VARIABLES[name]: server.url}).wait_until_healthy()
        (before,) = post(dyno, kind="sleep", seconds=3)
        running(dyno, before)
        server.stop()
        gone = time.monotonic()
        health = wait_for(lambda: (found := dyno.get("/healthz"))[0] == 503 and found[1], "/healthz says so")
        assert "The queue can't be used: the queue's broker can't be reached." in health["reasons"]
        for _ in range(6):  # on connections that were open and on new ones, of each web worker
            assert dyno.post("/jobs", {"kind": "sleep", "seconds": 0})[0] == 503
        wait_for(lambda: time.monotonic() - gone > 20, "20 s without a broker", 25)
        server.start()
        wait_for(dyno.is_healthy, "/healthz answers 200 again", 60)
        (after,) = post(dyno, kind="sleep", seconds=0)
        wait_done(dyno, before, after)


def test_a_job_that_rabbitmq_gives_out_again_does_not_run_twice_at_once(start_dyno: StartDyno) -> None:
    """RabbitMQ gives it to another worker as soon as the connection is lost; the first run must be over by then."""
    with servers.RabbitMQ() as server:
        dyno = start_dyno(AMQP_URL=server.url).wait_until_healthy()
        (number,) = post(dyno, kind="sleep", seconds=50)
        first = running(dyno, number)["pid"]
        server.stop()
        server.start()
        running(dyno, number, runs=2)
        assert not alive({first})


def test_a_full_disk_under_the_embedded_database_loses_no_job(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounts a small file system: needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run([needs("mount"), "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(disk)], check=True)
    dyno = Dyno(tmp_path / "dyno", {"DATABASE_URL": "", "EMBEDDED_POSTGRES": str(disk / "postgres")})
    try:
        dyno.start("--release").wait_until_healthy()
        before = post(dyno, kind="sleep", seconds=0.1, count=20)
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                pass

        def refused() -> bool:
            status, answer = dyno.post("/jobs", {"kind": "sleep", "seconds": 0, "count": 100})
            if status == 202:
                before.extend(answer["ids"])
            return status == 503

        wait_for(refused, "a full disk is answered with 503", 60)
        ballast.unlink()
        wait_for(dyno.is_healthy, "/healthz answers 200 again", 60)
        wait_done(dyno, *before, *post(dyno, kind="sleep", seconds=0))
        assert dyno.stop() == 0
    finally:
        dyno.kill()
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
