"""The plan that LocalProcfile makes, and what the census shows and hides."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from boiler import census, processes
from boiler.procfile import Entry
from tests.wait import wait_for

KEY = "k" * 50


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("gunicorn config.wsgi", ("gunicorn", 3, 3)),
        ("gunicorn --workers 5 config.wsgi", ("gunicorn", 5, 5)),
        ("gunicorn -w 5 config.wsgi", ("gunicorn", 5, 5)),
        ("celery -A config worker", ("celery worker", 4, 4)),
        ("celery -A config worker --concurrency=7", ("celery worker", 7, 7)),
        ("celery -A config worker -c 7 -P prefork", ("celery worker", 7, 7)),
        ("celery -A config worker --autoscale=9,2", ("celery worker", 2, 9)),
        ("celery -A config worker --pool threads", ("celery worker", 0, 0)),
        ("python -m celery -A config beat", ("celery beat", 0, 0)),
        ("node server.js --workers 5", ("other", 0, None)),
    ],
)
def test_a_line_says_what_it_becomes(command: str, expected: tuple[str, int, int | None]) -> None:
    plan = census.plan(Entry("name", command), {"WEB_CONCURRENCY": "3", "WORKER_CONCURRENCY": "4"})
    assert (plan.kind, plan.fewest, plan.most) == expected


@pytest.mark.parametrize(
    ("setting", "value", "title"),
    [
        ("DJANGO_SECRET_KEY", KEY, f"python -c pass {KEY}"),
        ("DATABASE_URL", "postgres://u:pass%40word@h/n", "psql postgres://u:pass%40word@h/n"),
        ("DATABASE_URL", "postgres://u:pass%40word@h/n", "env PGPASSWORD=pass@word psql"),
        ("AMQP_URL", "amqp://u:long-enough@h/v", "rabbit --password=long-enough"),
    ],
)
def test_a_command_line_with_a_secret_is_found_and_not_shown(setting: str, value: str, title: str) -> None:
    hidden = census.Hidden({setting: value})
    process = census.Process(7, 1, "S", title)
    (leak,) = hidden.leaks([process])
    assert (leak["pid"], leak["setting"]) == (7, setting)
    for shown in (hidden.shown(process).title, leak["program"]):
        assert not any(secret in shown for secret in (KEY, "pass%40word", "pass@word", "long-enough"))


def test_what_is_no_secret_is_no_leak() -> None:
    hidden = census.Hidden({"DATABASE_URL": "postgresql://dyno@%2Ftmp/dyno", "REDIS_URL": "redis://u:dyno@h"})
    assert hidden.leaks([census.Process(7, 1, "S", "postgres: dyno dyno postgresql://dyno@%2Ftmp/dyno")]) == []


def test_addresses_are_read_as_the_kernel_writes_them() -> None:
    with socket.socket() as four, socket.socket(socket.AF_INET6) as six:
        four.bind(("127.0.0.1", 0))
        six.bind(("::1", 0))
        for each in (four, six):
            each.listen()
        found = census._listening({os.getpid(): "web"})
        rows = {(row["address"], row["port"]): row for row in found}
        assert rows["127.0.0.1", four.getsockname()[1]]["pids"] == [os.getpid()]
        assert rows["::1", six.getsockname()[1]]["names"] == ["web"]


def test_a_name_with_spaces_and_brackets_is_one_process(tmp_path: Path) -> None:
    program = tmp_path / "a (odd) name) S 1"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "1000"]) as process:
        found = census.everything()[process.pid]
        process.kill()
    assert (found.parent, found.title) == (os.getpid(), f"{program} 1000")


def test_a_zombie_that_was_left_to_the_first_process_before_the_dyno_began_is_not_its_own() -> None:
    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["sleep", "1000"])
        born = processes.started(process.pid)
        tick = os.sysconf("SC_CLK_TCK")
        wait_for(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) * tick > born + 1, "the next is younger")
        return process

    with start() as before, start() as boiler, start() as after:
        table = {each.pid: census.Process(each.pid, 1, "Z", "") for each in (before, boiler, after)}
        seen = {**table, 1: census.Process(1, 0, "S", "")}
        assert [census._is_ours(each.pid, seen, boiler.pid) for each in (before, after)] == [False, True]
        for each in (before, boiler, after):
            each.kill()
