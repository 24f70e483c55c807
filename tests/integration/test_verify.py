"""`make verify`: its checks pass on a dyno that is well, and each breakage is named by the check for it alone."""

from __future__ import annotations

import copy
import importlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from boiler.settings import ROOT
from tests import servers
from tests.docker import checkout
from tests.dyno import Dyno, free_port
from tests.jobs import Queue, url_of
from tests.verify.target import Seen
from tests.wait import wait_for

CHECKS = ("test_1_processes", "test_2_web", "test_3_jobs", "test_4_safety")
Document = dict[str, Any]
KEY = secrets.token_urlsafe(50)  # no other test's, which may run on this machine now and show its own


def findings(document: Document, *, deployment: bool = False, outside: Document | None = None) -> dict[str, str]:
    """The checks that fail on a document, each with its message."""
    seen = Seen("test", document, outside, deployment)
    found = {}
    for module in CHECKS:
        for name, check in vars(importlib.import_module(f"tests.verify.{module}")).items():
            if name.startswith("test_") and (deployment or "debug" not in name):
                try:
                    check(seen)
                except pytest.fail.Exception as failure:
                    found[name.removeprefix("test_")] = str(failure)
    return found


def look_into(dyno: Dyno) -> Document:
    """What `boil inspect` prints."""
    command = [*dyno.boil, "inspect"]
    done = subprocess.run(command, env=dyno.environ, cwd=dyno.root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def verify(environ: dict[str, str], **variables: str) -> subprocess.CompletedProcess[str]:
    """What `make verify` runs, with these variables of make."""
    makefile = (ROOT / "Makefile").read_text()
    words = makefile.partition("\nverify:")[2].partition("\n\n")[0].replace("\\\n", " ").partition("@")[2].split()
    assert words[:3] == [".venv/bin/python", "-m", "pytest"]
    command = [sys.executable, *words[1:]]
    clean = {name: value for name, value in environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(command, env={**clean, **variables}, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def database(postgres: str, migrated: str) -> Iterator[str]:
    """The URL of a migrated database that the dynos of this module share, one after the other."""
    name = f"verify_{os.urandom(4).hex()}"
    with psycopg.connect(postgres + "postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {migrated} OWNER dyno")
    yield url_of(postgres, name)
    with psycopg.connect(postgres + "postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def make(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Dyno]]:
    """`make(NAME="value")` starts a dyno of this checkout, `make(root=folder)` one of another."""
    dynos: list[Dyno] = []

    def start(*words: str, root: Path = ROOT, **environ: str) -> Dyno:
        folder = tmp_path_factory.mktemp("dyno") / "dyno"
        own = {"DJANGO_SECRET_KEY": KEY, "DATABASE_URL": database, "VIRTUAL_ENV": "1", "DJANGO_DEBUG": "0"}
        dyno = Dyno(folder, {**own, **environ}, root)
        dynos.append(dyno)
        return dyno.start(*words)

    yield start
    for dyno in dynos:
        dyno.kill()


@pytest.fixture(scope="module")
def well(make: Callable[..., Dyno]) -> Iterator[Dyno]:
    """A dyno that is well."""
    dyno = make().wait_until_healthy()
    yield dyno
    dyno.kill()


@pytest.fixture(scope="module")
def document(well: Dyno) -> Document:
    """What is seen of it."""
    return look_into(well)


def test_a_dyno_that_is_well_passes_every_check_with_a_line_for_each(well: Dyno) -> None:
    done = verify(well.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("ok  ")]
    assert len(lines) == 20
    assert "ok    A job goes round: sent, queued, done by a worker" in lines
    assert "20 passed" in done.stdout
    print(done.stdout.splitlines()[-1])


# For each check a document in which one thing is wrong, and words of the message.
def _set(*path: Any, to: Any) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = to

    return change


def _process(pid: int, name: str, below: str, **other: Any) -> Callable[[Document], None]:
    """Add a process below an inner process's main one, or below the boiler ("")."""

    def change(document: Document) -> None:
        boiler = document["status"]["boiler"]
        mains = {one["name"]: one["pid"] for one in document["status"]["processes"]} | {"": boiler["pid"]}
        row = {"pid": pid, "parent": mains[below], "state": "S", "title": "sleep 100", "name": name, "lasting": True}
        document["processes"].append(row | other)

    return change


def _without(title: str) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        victim = next(one for one in document["processes"] if one["title"] == title)
        document["processes"].remove(victim)

    return change


def _worker(**report: Any) -> Callable[[Document], None]:
    return lambda document: document["web"]["workers"][0].update(report)


MB = 1 << 20
FOREIGN = "django_celery_beat.schedulers:DatabaseScheduler"  # a scheduler that knows no election
WRONG: dict[str, tuple[Callable[[Document], None], str, str]] = {
    "a main process in backoff": (
        _set("status", "processes", 0, "state", to="backoff"),
        "every_inner_process_runs",
        "it is backoff",
    ),
    "a gunicorn worker is missing": (
        _without("web: gunicorn worker (gevent)"),
        "gunicorn_has_its_workers",
        "has 1 worker, planned are 2 (WEB_CONCURRENCY)",
    ),
    "a gunicorn worker too many": (
        _process(7, "web", "web"),
        "gunicorn_has_its_workers",
        "has 3 workers, planned are 2",
    ),
    "a Celery child is missing": (
        _without("worker: celery pool child"),
        "celery_has_its_children",
        "has 1 forked child, planned are 2",
    ),
    "a Celery child too many": (_process(7, "worker", "worker"), "celery_has_its_children", "has 3 forked children"),
    "a child of beat": (_process(7, "beat", "beat"), "nothing_else_runs", "beat should have no children: pid 7"),
    "an orphan below the boiler": (_process(7, "", ""), "nothing_else_runs", "pid 7 (sleep 100): left behind"),
    "gthread workers": (_worker(main_thread=False), "gunicorn_workers_are_what_was_chosen", "works like a gthread one"),
    "a sync worker": (_worker(at_once=1), "gunicorn_workers_are_what_was_chosen", "works like a sync one"),
    "a worker that hangs": (
        lambda document: document["web"]["workers"].pop(),
        "gunicorn_workers_are_what_was_chosen",
        "answered no request",
    ),
    "a zombie": (_set("zombies", to=[7]), "no_zombie", "pid 7"),
    "a stopped process": (_process(7, "worker", "", state="T", parent=6), "no_process_is_stopped", "kill -CONT"),
    "a restart": (_set("status", "processes", 2, "restarts", to=2), "no_restarts", "2 restarts since the dyno's start"),
    "another port": (_set("port", to=1), "gunicorn_listens", "gunicorn does not listen on PORT=1"),
    "an open port": (
        lambda document: document["listening"].append({"address": "0.0.0.0", "port": 9, "pids": [7], "names": ["x"]}),
        "nothing_else_listens_outside",
        "x (pid 7) listens on 0.0.0.0:9: bind it to 127.0.0.1",
    ),
    "the page is gone": (_set("web", "page", to={"path": "/", "status": 404}), "the_page_answers", "PAGE=/path"),
    "the page is refused": (
        _set("web", "page", to={"path": "/", "status": 400}),
        "the_page_answers",
        "DJANGO_ALLOWED_HOSTS",
    ),
    "the page breaks": (_set("web", "page", to={"path": "/", "status": 500}), "the_page_answers", "answers 500"),
    "ill health": (
        _set("web", "health", to={"status": 503, "reasons": ["The database can't be reached."]}),
        "healthz_answers",
        "answers 503: The database can't be reached.",
    ),
    "a job that stays away": (
        _set("job", to={"done": False, "seconds": 10.0}),
        "a_job_goes_round",
        "not done within 10 s",
    ),
    "a schedule that stands still": (
        _set("schedule", to={"done": False, "seconds": 15.0}),
        "a_scheduled_job_runs",
        "look at beat",
    ),
    "no beat": (_set("database", "leaders", to=0), "one_beat_leads", "0 beats of all dynos lead"),
    "a second beat": (_set("database", "beats", to=2), "one_beat_leads", "1 beat beside the leading one"),
    "a migration is missing": (
        _set("database", "migrations", to=["jobs.0003_ping"]),
        "migrations_are_applied",
        "(jobs.0003_ping)",
    ),
    "little memory": (
        _set("memory", to={"limit": 512 * MB, "used": 500 * MB}),
        "memory_has_room",
        "500.0 MB of 512.0 MB",
    ),
    "another key": (
        lambda document: document["database"]["fingerprints"].append(["web", "00000000"]),
        "one_secret_key",
        "another dyno on this database (web) has another DJANGO_SECRET_KEY",
    ),
    "a secret for all to see": (
        _set("leaks", to=[{"pid": 7, "program": "psql", "setting": "DATABASE_URL"}]),
        "no_secret_in_a_command_line",
        "pid 7 (psql) shows DATABASE_URL",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_each_fault_is_named_by_the_check_for_it_alone(what: str, document: Document) -> None:
    assert findings(document) == {}
    change, check, words = WRONG[what]
    changed = copy.deepcopy(document)
    change(changed)
    found = findings(changed)
    assert list(found) == [check]
    assert words in found[check]


def test_a_database_that_can_t_be_asked(document: Document) -> None:
    found = findings({**document, "database": {"error": "OperationalError"}})
    assert found.keys() == {"one_beat_leads", "migrations_are_applied"}
    assert "the database can't be asked (OperationalError): see DATABASE_URL" in found["migrations_are_applied"]


def test_every_check_can_fail() -> None:
    checks = {
        name.removeprefix("test_")
        for module in CHECKS
        for name in vars(importlib.import_module(f"tests.verify.{module}"))
        if name.startswith("test_")
    }
    assert checks == {check for _, check, _ in WRONG.values()} | {"no_orphan", "debug_is_off_and_cookies_are_secure"}


@pytest.mark.timeout(300)  # each look waits 10 s for the second beat to go
def test_what_runs_beside_a_dyno_and_should_not(well: Dyno, make: Callable[..., Dyno], tmp_path: Path) -> None:
    other = make(DJANGO_SECRET_KEY="another key, of another dyno, on the same database 0123456789")
    key = well.environ["DJANGO_SECRET_KEY"]
    beside = [
        subprocess.Popen(["sleep", "1000"], cwd=ROOT, env={**well.environ, "BOILER_PROCESS": "web"}),
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", key]),
        subprocess.Popen(
            [sys.executable, "-m", "celery", "--app", "config", "beat", "--scheduler", FOREIGN],
            env={**well.environ, "PYTHONPATH": str(ROOT / "app")},
            cwd=tmp_path,
        ),
    ]
    expected = {"no_orphan", "no_secret_in_a_command_line", "one_beat_leads", "one_secret_key"}
    try:
        other.wait_until_healthy()
        found = wait_for(lambda: (now := findings(look_into(well))).keys() == expected and now, str(expected), 90)
    finally:
        for process in beside:
            process.kill()
            process.wait()
        other.kill()
    assert f"pid {beside[0].pid} (sleep 1000): under no boiler" in found["no_orphan"]
    assert f"pid {beside[1].pid} (python" in found["no_secret_in_a_command_line"]
    assert "DJANGO_SECRET_KEY" in found["no_secret_in_a_command_line"]
    assert key not in json.dumps(found)
    assert "1 beat beside the leading one" in found["one_beat_leads"]
    assert "has another DJANGO_SECRET_KEY" in found["one_secret_key"]
    wait_for(lambda: findings(look_into(well)) == {}, "the dyno is well again", 90)


# What LocalProcfile gets in addition.
LINES = """
sleeper: sleep 100000
ender: sleep 100001
leaver: python leaver.py
careless: python careless.py
open: python -m http.server {port}
"""
# Leaves a grandchild to whoever adopts it.
LEAVER = """
import subprocess, time
subprocess.run(["sh", "-c", "sleep 100002 & true"])
time.sleep(100000)
"""
# Never looks after its child.
CARELESS = """
import subprocess, time
child = subprocess.Popen(["true"])
time.sleep(100000)
"""


def test_what_runs_in_a_dyno_and_should_not(make: Callable[..., Dyno], tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    checkout(root)
    port = free_port()
    with (root / "LocalProcfile").open("a") as file:
        file.write(LINES.format(port=port))
    (root / "leaver.py").write_text(LEAVER)
    (root / "careless.py").write_text(CARELESS)
    dyno = make(root=root).wait_until_healthy()
    os.kill(dyno.inner("sleeper")["pid"], signal.SIGSTOP)
    os.kill(dyno.inner("ender")["pid"], signal.SIGKILL)
    with (root / "LocalProcfile").open("a") as file:
        file.write("mailer: sleep 100003\n")
    wait_for(lambda: dyno.inner("ender")["restarts"] and dyno.inner("ender")["pid"], "ender is back")
    found = findings(look_into(dyno))
    dyno.kill()
    assert found.keys() == {
        "every_inner_process_runs",
        "nothing_else_runs",
        "no_zombie",
        "no_process_is_stopped",
        "no_restarts",
        "nothing_else_listens_outside",
    }
    assert found["every_inner_process_runs"].startswith("mailer is in LocalProcfile, but")
    assert "(sleep 100002): left behind" in found["nothing_else_runs"]
    assert "careless.py" in found["no_zombie"]
    assert "(sleep 100000)" in found["no_process_is_stopped"]
    assert found["no_restarts"].startswith("ender: 1 restart since")
    assert found["nothing_else_listens_outside"].startswith("open (pid ")
    assert f"listens on 0.0.0.0:{port}" in found["nothing_else_listens_outside"]


def test_three_sync_workers_where_two_gevent_ones_are_planned(make: Callable[..., Dyno]) -> None:
    dyno = make(GUNICORN_CMD_ARGS="--worker-class sync --workers 3").wait_until_healthy()
    found = findings(look_into(dyno))
    dyno.kill()
    assert found.keys() == {"gunicorn_has_its_workers", "gunicorn_workers_are_what_was_chosen"}
    assert "3 workers, planned are 2" in found["gunicorn_has_its_workers"]
    assert "works like a sync one" in found["gunicorn_workers_are_what_was_chosen"]


@pytest.mark.parametrize("worker_class", ["gthread", "sync"])
def test_another_worker_class_is_no_fault_if_it_was_chosen(make: Callable[..., Dyno], worker_class: str) -> None:
    dyno = make(WEB_WORKER_CLASS=worker_class).wait_until_healthy()
    assert findings(look_into(dyno)) == {}
    dyno.kill()


def test_debug_is_a_fault_of_a_deployment_alone(make: Callable[..., Dyno]) -> None:
    dyno = make(DJANGO_DEBUG="1").wait_until_healthy()
    document = look_into(dyno)
    dyno.kill()
    assert findings(document) == {}
    found = findings(document, deployment=True)
    assert list(found) == ["debug_is_off_and_cookies_are_secure"]
    assert "set DJANGO_DEBUG=0" in found["debug_is_off_and_cookies_are_secure"]


def test_a_deployment_without_https_must_be_meant(document: Document) -> None:
    assert document["settings"]["https"] is False  # the tests' dynos talk plain http
    found = findings(document, deployment=True)
    assert "DJANGO_HTTPS=0" in found["debug_is_off_and_cookies_are_secure"]
    outside = copy.deepcopy(document["web"])
    assert findings(document, deployment=True, outside={**outside, "url": "http://kitchen.example"}) == {}
    document = copy.deepcopy(document)
    document["settings"] |= {"https": True, "secure_cookies": True}
    outside |= {"url": "https://kitchen.example", "open_cookies": ["csrftoken"]}
    found = findings(document, deployment=True, outside=outside)
    assert "sets the cookie csrftoken without Secure" in found["debug_is_off_and_cookies_are_secure"]


def test_a_broker_that_died(make: Callable[..., Dyno], queue: Queue) -> None:
    with servers.Redis() as broker:
        dyno = make(DATABASE_URL=queue.url, REDIS_URL=broker.url).wait_until_healthy()
        assert findings(look_into(dyno)) == {}
    found = findings(look_into(dyno))
    dyno.kill()
    assert found.keys() == {"healthz_answers", "a_job_goes_round", "a_scheduled_job_runs"}
    assert "see REDIS_URL" in found["a_job_goes_round"]
    assert "queue" in found["healthz_answers"]


def test_stopped_celery_children(make: Callable[..., Dyno], queue: Queue) -> None:
    dyno = make(DATABASE_URL=queue.url).wait_until_healthy()

    def pool() -> list[int]:
        children = dyno.inner("worker")["children"]
        return [child["pid"] for child in children if "celery pool child" in child["title"]]

    wait_for(lambda: len(pool()) == 2, "the pool is complete")
    for pid in pool():
        os.kill(pid, signal.SIGSTOP)
    found = findings(look_into(dyno))
    dyno.kill()
    assert found.keys() == {"no_process_is_stopped", "a_job_goes_round", "a_scheduled_job_runs"}
    assert "celery pool child" in found["no_process_is_stopped"]


def test_a_beat_that_takes_over_in_this_moment_is_waited_for(make: Callable[..., Dyno], queue: Queue) -> None:
    """Between the end of the leading beat's dyno and another's next try, no beat leads for up to 2 s."""
    dyno = make(DATABASE_URL=queue.url).wait_until_healthy()
    ours = "FROM pg_stat_activity WHERE datname = current_database() AND"
    wait_for(lambda: queue.rows(f"SELECT 1 {ours} application_name LIKE 'beat %% election'"), "the beat leads")
    beat = dyno.inner("beat")["pid"]
    os.kill(beat, signal.SIGSTOP)
    queue.rows(f"SELECT pg_terminate_backend(pid) {ours} application_name LIKE 'beat %% election'")
    with ThreadPoolExecutor() as pool:
        looking = pool.submit(look_into, dyno)
        asked = f"SELECT 1 {ours} query LIKE '%%pg_locks%%' AND pid <> pg_backend_pid()"
        wait_for(lambda: looking.done() or queue.rows(asked), "it was asked who leads")
        os.kill(beat, signal.SIGCONT)
        assert findings(looking.result()) == {}
    dyno.kill()


def test_a_dyno_of_web_alone_has_no_beat_and_no_worker(make: Callable[..., Dyno], queue: Queue) -> None:
    dyno = make("web", DATABASE_URL=queue.url).wait_until_healthy()
    found = findings(look_into(dyno))
    dyno.kill()
    assert found.keys() == {"one_beat_leads", "a_job_goes_round", "a_scheduled_job_runs"}
