"""/healthz: when it says 200, when 503, and what it keeps to itself."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.http import HttpResponse
from django.test import RequestFactory

from jobs import health
from jobs.health import HealthMiddleware
from jobs.queue import QueueError

pytestmark = pytest.mark.django_db(transaction=True)
Answer = tuple[int, dict[str, Any]]


@pytest.fixture
def ask() -> Callable[..., Answer]:
    def ask_healthz(method: str = "GET", path: str = "/healthz") -> Answer:
        middleware = HealthMiddleware(lambda _: HttpResponse("passed on"))
        request = RequestFactory().generic(method, path, headers={"host": "10.1.2.3"})
        response = middleware(request)
        return response.status_code, json.loads(response.content) if b"{" in response.content else response

    return ask_healthz


@pytest.fixture
def boiler(tmp_path: Path, monkeypatch) -> Iterator[Callable[[str], None]]:
    """`boiler(answer)` stands in for the boiler's socket."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "status"))
    listener.listen()
    monkeypatch.setenv("BOILER_STATUS", str(tmp_path / "status"))

    def answer_with(answer: str) -> None:
        def serve() -> None:
            client, _ = listener.accept()
            with client:
                assert json.loads(client.makefile().readline()) == {"command": "states"}
                client.sendall(answer.encode() + b"\n")

        threading.Thread(target=serve, daemon=True).start()

    yield answer_with
    listener.close()


def states(**states: str) -> str:
    return json.dumps({"processes": [{"name": name, "state": state} for name, state in states.items()]})


def test_all_is_well_without_a_boiler(ask):
    assert ask() == (200, {"status": "ok", "checks": {"database": "ok", "queue": "ok"}})


def test_all_is_well_with_every_inner_process_running(ask, boiler):
    boiler(states(web="running", worker="running"))
    assert ask() == (200, {"status": "ok", "checks": {"processes": "ok", "database": "ok", "queue": "ok"}})


def test_a_process_in_backoff_is_named(ask, boiler):
    boiler(states(web="running", worker="backoff"))
    status, answer = ask()
    assert (status, answer["reasons"]) == (503, ["The process worker is not running: backoff."])


@pytest.mark.parametrize("answer", ["", "{}", '{"processes": 3}', "nonsense"])
def test_a_boiler_that_talks_nonsense_is_a_reason(answer, ask, boiler):
    boiler(answer)
    status, answer = ask()
    assert (status, answer["reasons"]) == (503, ["The boiler does not answer."])


def test_a_boiler_that_is_gone_or_hangs_is_a_reason(ask, monkeypatch, tmp_path, boiler):
    began = time.monotonic()
    assert ask()[1]["reasons"] == ["The boiler does not answer."]  # its socket is there, and nobody accepts
    monkeypatch.setenv("BOILER_STATUS", str(tmp_path / "gone"))
    assert ask()[1]["reasons"] == ["The boiler does not answer."]
    assert time.monotonic() - began < 2


def test_a_database_that_can_t_be_reached_is_one_reason_that_names_no_host(ask, monkeypatch):
    def refuse() -> None:
        raise OperationalError("connection to server at secret.example.com, user dyno, failed")

    monkeypatch.setattr(health, "select_one", refuse)
    status, answer = ask()
    assert (status, answer["reasons"]) == (503, ["The database can't be reached."])


def test_a_database_that_hangs_is_a_reason_after_three_seconds(ask, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(health, "select_one", released.wait)
    began = time.monotonic()
    status, answer = ask()
    released.set()
    assert (status, answer["reasons"]) == (503, ["The database does not answer within 3 s."])
    assert 2.9 < time.monotonic() - began < 4


def test_a_queue_that_can_t_be_used_is_a_reason(ask, monkeypatch):
    def fail() -> None:
        raise QueueError("the queue's broker can't be reached")

    monkeypatch.setattr(health, "probe", fail)
    assert ask()[1]["reasons"] == ["The queue can't be used: the queue's broker can't be reached."]


def test_a_queue_whose_tables_are_gone_says_which_command_helps(ask):
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE pgmq.q_celery RENAME TO q_gone")
    try:
        assert ask()[1]["reasons"] == [
            "The queue can't be used: the queue's tables are missing: run `python app/manage.py migrate`."
        ]
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE pgmq.q_gone RENAME TO q_celery")


def test_an_answer_is_kept_for_one_second_and_no_cache_keeps_it(monkeypatch):
    calls = []
    monkeypatch.setattr(health, "select_one", lambda: calls.append(1))
    middleware = HealthMiddleware(lambda _: HttpResponse())
    for _ in range(5):
        assert middleware(RequestFactory().get("/healthz")).headers["Cache-Control"] == "no-store"
    assert len(calls) == 1
    monkeypatch.setattr(health, "monotonic", lambda: time.monotonic() + 1.1)
    middleware(RequestFactory().get("/healthz"))
    assert len(calls) == 2


def test_head_has_no_body_post_is_not_allowed_and_other_paths_pass(ask):
    status, response = ask("HEAD")
    assert (status, response.content) == (200, b"")
    assert ask("POST")[0] == 405
    assert ask(path="/healthz/more")[1].content == b"passed on"
