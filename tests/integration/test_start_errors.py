"""What a user sees when the dyno can't start: one line, what is wrong, where, what to do; non-zero exit."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from boiler.settings import ROOT
from tests.dyno import Dyno, free_port
from tests.wait import wait_for

DynoFactory = Callable[..., Dyno]


def boil(*words: str, dyno: Dyno) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*dyno.boil, *words], env=dyno.environ, capture_output=True, text=True, timeout=90, check=False
    )


@pytest.mark.parametrize(
    ("local_procfile", "expected"),
    [
        ("", "LocalProcfile: empty"),
        ("web: sleep 1\nno colon\n", "LocalProcfile:2: 'no colon' is not `name: command`"),
        ("web: sleep 1\nweb: sleep 1\n", "LocalProcfile:2: a second 'web'"),
        ("worker: sleep 1\n", "LocalProcfile: no `web`"),
        ("web: no-such-program\n", "LocalProcfile:1: web: there is no command 'no-such-program'"),
    ],
)
def test_a_mistake_in_localprocfile(scratch: DynoFactory, local_procfile: str, expected: str) -> None:
    answer = boil("start", dyno=scratch(local_procfile))
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"boil: {expected}")
    assert answer.stderr.count("\n") == 1
    assert answer.stdout == ""


def test_a_missing_localprocfile(scratch: DynoFactory) -> None:
    dyno = scratch("web: sleep 1\n")
    (dyno.root / "LocalProcfile").unlink()
    assert "LocalProcfile: missing" in boil("start", dyno=dyno).stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "eighty"), ("DATABASE_URL", "postgres//nonsense"), ("DATABASE_URL", "postgresql://u:p@h:port/n")],
)
def test_a_setting_that_can_not_be_read(scratch: DynoFactory, name: str, value: str) -> None:
    answer = boil("start", dyno=scratch("web: sleep 1\n", **{name: value}))
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"boil: {name}")
    assert answer.stderr.count("\n") == 1


def test_a_port_that_is_taken(scratch: DynoFactory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        answer = boil("start", dyno=scratch("web: sleep 1\n", PORT=str(server.getsockname()[1])))
    assert answer.returncode == 1
    assert "taken by another process" in answer.stderr


def test_a_missing_secret_key(scratch: DynoFactory) -> None:
    answer = boil("start", dyno=scratch("web: sleep 1\n", DJANGO_SECRET_KEY=""))
    assert answer.returncode == 1
    assert answer.stderr.startswith("boil: DJANGO_SECRET_KEY is not set: set it, once, to what this prints: python3 -c")


def test_an_ephemeral_disk_without_a_database(scratch: DynoFactory) -> None:
    answer = boil("start", dyno=scratch("web: sleep 1\n", DATABASE_URL="", DYNO="web.1"))
    assert "DATABASE_URL is not set" in answer.stderr


def test_a_database_that_can_not_be_reached(start_dyno: DynoFactory) -> None:
    url = f"postgresql://dyno:hidden-word@127.0.0.1:{free_port()}/none"
    dyno = start_dyno(DATABASE_URL=url, DATABASE_WAIT="2")
    assert dyno.process.wait(60) == 1
    assert "waiting up to 2 s for the database" in dyno.log()
    assert "DATABASE_URL: no database after 2 s" in dyno.log()
    assert "Traceback" not in dyno.log()
    assert "hidden-word" not in dyno.log()


def test_a_database_that_is_still_starting_is_waited_for(start_dyno: DynoFactory, database_url: str) -> None:
    """The database is there some time after the dyno has begun to wait: a relay opens the way to it."""
    port = free_port()
    name = database_url.rpartition("/")[2]
    dyno = start_dyno(DATABASE_URL=f"postgresql://dyno@127.0.0.1:{port}/{name}")
    wait_for(lambda: "waiting up to 30 s for the database" in dyno.log(), "the dyno waits")
    socket_file = Path(psycopg.conninfo.conninfo_to_dict(database_url)["host"]) / ".s.PGSQL.5432"
    relay = ROOT / "tests" / "relay.py"
    with subprocess.Popen([sys.executable, str(relay), str(port), str(socket_file)]) as process:
        dyno.wait_until_healthy()
        assert dyno.stop() == 0
        process.terminate()


def test_migrations_that_are_not_applied(start_dyno: DynoFactory, database_url: str, tmp_path: Path) -> None:
    dyno = Dyno(tmp_path / "unmigrated", {"DATABASE_URL": database_url}).start()
    try:
        assert dyno.process.wait(60) == 1
        (line,) = [line for line in dyno.log().splitlines() if "are not applied" in line]
        assert "run the release phase, `python app/manage.py migrate`" in line
        assert "Traceback" not in dyno.log()
    finally:
        dyno.kill()


def test_one_migration_that_is_not_applied(dyno: Dyno, database_url: str) -> None:
    assert dyno.stop() == 0
    with psycopg.connect(database_url) as connection:
        connection.execute("DELETE FROM django_migrations WHERE app = 'demo' AND name = '0003_live'")
    assert dyno.start().process.wait(60) == 1
    assert "migrations that are not applied: 1 (demo.0003_live): run the release phase" in dyno.log()


def test_settings_without_a_key_end_django_in_one_line() -> None:
    environ = {"PATH": "/usr/bin:/bin", "DATABASE_URL": "postgresql://u@h/n"}
    command = [sys.executable, "app/manage.py", "check"]
    answer = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert answer.returncode != 0
    assert answer.stderr.count("\n") == 1
    assert "DJANGO_SECRET_KEY is not set" in answer.stderr
