"""The benchmark from the command line, on real dynos."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
import redis

from boiler.settings import ROOT
from tests.dyno import Dyno, free_port
from tests.needs import needs
from tests.servers import Redis
from tests.verify import target
from tests.verify.backends import UnreachableError
from tests.wait import wait_for


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """Type a command of docs/bench.md."""
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_courses_numbers_are_those_of_the_database(dyno: Dyno, database_url: str, tmp_path: Path) -> None:
    done = make("bench", f"URL={dyno.url}", f"BENCH=--output {tmp_path}")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "course.json").read_text())
    with psycopg.connect(database_url) as connection:
        counted = dict(connection.execute("SELECT kind, count(*) FROM demo_job GROUP BY kind").fetchall())
    assert counted == {"io": figures["io"]["sent"], "cpu": figures["cpu"]["sent"], "sleep": figures["storm"]["sent"]}
    assert f"{figures['hello']['requests_per_s']:,.0f} requests/s" in done.stdout
    again = make("bench", f"URL={dyno.url}")
    assert again.returncode != 0
    assert "A benchmark ran a moment ago" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("URL=http://127.0.0.1:1", "give another URL="),
        ("PORT=1", "http://127.0.0.1:1: "),
        ("URL=ftp://127.0.0.1", "URL=ftp://127.0.0.1 is no address: write https://HOST"),
        ("TARGET=docker", "TARGET=docker needs APP: the container's name"),
        ("TARGET=mars", "there is no TARGET=mars: take one of local, docker, "),
        ("TARGET=docker APP=nosuch", "docker://nosuch: `app/boil inspect` failed"),
    ],
)
def test_a_target_that_is_not_there_is_told_in_one_line(words: str, reason: str) -> None:
    done = make("bench", *words.split())
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("bench: ") and "asking" not in line)
    assert reason in line


def test_a_platform_is_benchmarked_where_its_visitors_get_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def address(host: str, *, https: bool) -> str:
        found = {"headers": {"Host": host}, "settings": {"https": https}}
        monkeypatch.setattr(target, "inspect", lambda *_: found)
        return target.visited({"TARGET": "heroku", "APP": "shop"}, lambda _: None).url

    assert address("shop.example", https=True) == "https://shop.example"
    assert address("shop.example", https=False) == "http://shop.example"
    with pytest.raises(UnreachableError, match="DJANGO_ALLOWED_HOSTS names no host that leads there: give URL="):
        address("localhost", https=True)


@pytest.mark.timeout(400)
def test_layouts_are_compared_side_by_side(tmp_path: Path) -> None:
    needs("redis-server")
    done = make("bench-compare", f"BENCH=--only boiler,seed --rounds 1 --short --output {tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "compare.json").read_text())["layouts"]
    for runs in results.values():
        (run,) = runs
        assert {name for name, value in run["figures"].items() if value < 0} == set()
        assert run["figures"]["done_per_s"] > 0
        assert run["figures"]["idle_pss_mb"] > 50
    assert results["boiler"][0]["figures"]["jobs_lost"] == 0
    assert "| jobs/s from AJAX to done |" in done.stdout
    assert (tmp_path / "compare.svg").read_text().startswith("<svg")


def test_the_relay_adds_the_round_trip_that_it_is_told() -> None:
    with Redis() as server:
        port = free_port()
        command = [sys.executable, str(ROOT / "tests" / "relay.py"), str(port), str(server.port), "50"]
        with subprocess.Popen(command) as relay:
            client = redis.Redis(port=port)
            wait_for(lambda: answers(client), "the relay is there")
            began = time.monotonic()
            client.ping()
            assert time.monotonic() - began >= 0.05
            relay.terminate()


def answers(client: redis.Redis) -> bool:
    with suppress(redis.ConnectionError):
        return client.ping()
    return False
