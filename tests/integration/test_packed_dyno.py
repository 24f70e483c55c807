"""The packed app as a user runs it: every process, every broker, every worker class."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import psycopg
import pytest

from boiler.settings import ROOT
from tests import servers
from tests.dyno import Dyno, alive
from tests.wait import wait_for

StartDyno = Callable[..., Dyno]


def all_done(dyno: Dyno, ids: list[int]) -> bool:
    """Whether all these jobs are done, asked some hundreds at a time."""
    for start in range(0, len(ids), 300):
        some = ",".join(map(str, ids[start : start + 300]))
        jobs = dyno.get(f"/jobs?ids={some}")[1]["jobs"]
        if any(job["state"] != "done" for job in jobs):
            return False
    return True


def post(dyno: Dyno, **order: object) -> list[int]:
    status, answer = dyno.post("/jobs", order)
    assert status == 202, answer
    return answer["ids"]


def test_a_thousand_jobs_are_all_done(dyno: Dyno) -> None:
    ids = post(dyno, kind="sleep", seconds=0.001, count=1000)
    assert len(set(ids)) == 1000
    wait_for(lambda: all_done(dyno, ids), "1,000 jobs are done", 60)


def test_every_process_is_recognised_by_its_title(dyno: Dyno) -> None:
    expected = {
        "boiler: init": 1,
        "boiler: supervisor": 1,
        "boiler: image (jobs)": 1,
        "boiler: image (web)": 1,
        "web: gunicorn master": 1,
        "web: gunicorn worker (gevent)": 2,
        "worker: celery main": 1,
        "worker: celery pool child": 2,
        "beat: celery beat": 1,
    }

    def titles() -> Counter[str]:
        command = ["ps", "-ww", "-o", "args=", "-p", ",".join(map(str, dyno.pids()))]
        return Counter(subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines())

    wait_for(lambda: titles() == expected, f"the titles: {titles()}")


def test_each_killed_process_comes_back_alone(dyno: Dyno) -> None:
    for name in ("web", "worker", "beat"):
        before = {one["name"]: one["pid"] for one in dyno.status()["processes"]}
        os.kill(before[name], signal.SIGKILL)
        began = time.monotonic()
        wait_for(lambda name=name: dyno.inner(name)["restarts"] == 1 and dyno.inner(name)["pid"], f"{name} is back")
        print(f"{name}: a new process after {time.monotonic() - began:.2f} s")
        wait_for(dyno.is_healthy, "/healthz answers 200")
        print(f"{name}: healthy after {time.monotonic() - began:.2f} s")
        after = {one["name"]: one["pid"] for one in dyno.status()["processes"]}
        assert {key for key in before if before[key] != after[key]} == {name}
    (job,) = post(dyno, kind="cpu", seconds=0.01)
    wait_for(lambda: all_done(dyno, [job]), "a job is done afterwards")


@pytest.mark.parametrize("victim", ["pid", "init_pid"])
def test_nothing_is_left_two_seconds_after_the_boiler_was_killed(dyno: Dyno, victim: str) -> None:
    pids = dyno.pids()
    os.kill(dyno.status()["boiler"][victim], signal.SIGKILL)
    wait_for(lambda: not alive(pids), "nothing of the dyno is left", 2)


def test_healthz_names_the_process_that_is_down(dyno: Dyno) -> None:
    def is_named() -> bool:
        """Killed whenever it is back: the third pause, 2 s, is longer than /healthz keeps an answer."""
        if pid := dyno.inner("worker")["pid"]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return any("worker" in reason for reason in dyno.get("/healthz")[1].get("reasons", []))

    wait_for(is_named, "/healthz names the worker")
    wait_for(dyno.is_healthy, "/healthz answers 200 again")


@pytest.mark.parametrize("worker_class", ["gevent", "gthread", "sync"])
def test_every_worker_class_serves_and_takes_jobs(start_dyno: StartDyno, worker_class: str) -> None:
    dyno = start_dyno(WEB_WORKER_CLASS=worker_class).wait_until_healthy()

    def titles() -> list[str]:
        return [child["title"] for child in dyno.inner("web")["children"]]

    wait_for(lambda: titles() == [f"web: gunicorn worker ({worker_class})"] * 2, "two workers of this class")
    ids = post(dyno, kind="io", seconds=0.01, count=5)
    wait_for(lambda: all_done(dyno, ids), "the jobs are done")
    assert dyno.stop() == 0


@pytest.mark.parametrize("name", ["redis", "rabbitmq"])
def test_another_broker_takes_over_by_its_url(start_dyno: StartDyno, database_url: str, name: str) -> None:
    server, variable = {"redis": (servers.Redis, "REDIS_URL"), "rabbitmq": (servers.RabbitMQ, "AMQP_URL")}[name]
    with server() as broker:
        dyno = start_dyno(**{variable: broker.url}).wait_until_healthy()
        ids = post(dyno, kind="sleep", seconds=0.001, count=1000)
        wait_for(lambda: all_done(dyno, ids), "1,000 jobs are done", 60)
        with psycopg.connect(database_url) as connection:
            (count,) = connection.execute("select count(*) from pgmq.q_celery").fetchone()
        assert count == 0
        assert dyno.stop() == 0


def test_postgresql_15_with_a_user_without_superuser_rights(tmp_path: Path) -> None:
    with servers.Postgres15() as server:
        dyno = Dyno(tmp_path / "dyno", {"DATABASE_URL": server.url})
        try:
            dyno.start("--release").wait_until_healthy()
            ids = post(dyno, kind="sleep", seconds=0.001, count=1000)
            wait_for(lambda: all_done(dyno, ids), "1,000 jobs are done", 60)
            assert dyno.stop() == 0
        finally:
            dyno.kill()


def test_200_requests_at_once_fit_into_20_database_connections(tmp_path: Path) -> None:
    with servers.Postgres15(max_connections="20", superuser_reserved_connections="0") as server, ExitStack() as stack:
        dyno = Dyno(tmp_path / "dyno", {"DATABASE_URL": server.url}).start("--release")
        stack.callback(dyno.kill)
        dyno.wait_until_healthy()
        answers: Counter[int] = Counter()
        most = 0

        def request(number: int) -> None:
            order = {"kind": "io", "seconds": 0.01}
            status, _ = dyno.post("/jobs", order) if number % 2 else dyno.get("/jobs/1")
            answers[status] += 1

        post(dyno, kind="sleep", seconds=0.001)
        counter = stack.enter_context(psycopg.connect(server.url, autocommit=True))
        sql = "select count(*) from pg_stat_activity where usename = 'dyno' and pid != pg_backend_pid()"
        for _ in range(3):
            threads = [threading.Thread(target=request, args=[number]) for number in range(200)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                most = max(most, counter.execute(sql).fetchone()[0])
                time.sleep(0.01)
        print(f"at most {most} connections")
        assert answers == {202: 300, 200: 300}
        assert most <= 19  # and the one that counts makes 20
        assert "too many" not in dyno.log()


def test_the_embedded_database_keeps_its_data_when_the_boiler_is_killed(tmp_path: Path) -> None:
    data = tmp_path / "postgres"
    settings = {"DATABASE_URL": "", "EMBEDDED_POSTGRES": str(data)}
    first = Dyno(tmp_path / "first", settings).start("--release").wait_until_healthy()
    ids = post(first, kind="sleep", seconds=0.001, count=20)
    wait_for(lambda: all_done(first, ids), "the jobs are done")
    pids = first.pids()
    first.process.kill()
    wait_for(lambda: not alive(pids), "nothing of the dyno is left, the database included", 5)
    second = Dyno(tmp_path / "second", settings).start("--release").wait_until_healthy()
    try:
        assert all_done(second, ids)
        assert second.stop() == 0
    finally:
        second.kill()


def test_two_dynos_on_one_embedded_database_are_refused(tmp_path: Path) -> None:
    settings = {"DATABASE_URL": "", "EMBEDDED_POSTGRES": str(tmp_path / "postgres"), "DATABASE_WAIT": "1"}
    first = Dyno(tmp_path / "first", settings).start("--release").wait_until_healthy()
    second = Dyno(tmp_path / "second", settings).start("--release")
    try:
        assert second.process.wait(30) == 1
        assert "another PostgreSQL runs on this folder" in second.log()
        assert first.is_healthy()
    finally:
        first.kill()
        second.kill()


def test_running_jobs_finish_when_the_dyno_stops_and_long_ones_start_again_in_the_next(start_dyno: StartDyno) -> None:
    dyno = start_dyno(DYNO_GRACE="9", WORKER_CONCURRENCY="4").wait_until_healthy()
    short = post(dyno, kind="sleep", seconds=3, count=2)
    long = post(dyno, kind="sleep", seconds=15, count=2)
    wait_for(lambda: all(dyno.get(f"/jobs/{job}")[1]["state"] == "running" for job in short + long), "all four run")
    assert dyno.stop(9) == 0
    following = start_dyno(WORKER_CONCURRENCY="4").wait_until_healthy()
    assert all_done(following, short)
    wait_for(lambda: all(following.get(f"/jobs/{job}")[1]["runs"] == 2 for job in long), "the long ones run again", 10)
    wait_for(lambda: all_done(following, long), "the long ones are done")


def test_manage_py_check_deploy_is_clean() -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": os.environ["DATABASE_URL"],
        "DJANGO_SECRET_KEY": "".join(map(chr, range(40, 100))),
        "DJANGO_ALLOWED_HOSTS": "example.com",
    }
    command = [sys.executable, "app/manage.py", "check", "--deploy", "--fail-level", "WARNING"]
    answer = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
