"""What the page and /status tell of the dyno, and what they keep to themselves."""

from __future__ import annotations

import json

import pytest

from demo import dyno

SECRET = "hunter2"
STATUS = {
    "boiler": {"pid": 1, "init_pid": 2, "state": "running", "uptime": 100.7, "grace": 30, "memory": 10},
    "images": [{"name": "web", "pid": 7, "memory": 40}, {"name": "jobs", "pid": 8, "memory": 50}],
    "processes": [
        {
            "name": "web",
            "command": f"TOKEN={SECRET} /usr/bin/gunicorn --token {SECRET} config.wsgi",
            "title": f"web: gunicorn {SECRET}",
            "pid": 3,
            "state": "running",
            "restarts": 2,
            "uptime": 99.9,
            "memory": 20,
            "children": [
                {"pid": 4, "title": "web: gunicorn worker", "memory": 5},
                {"pid": 5, "title": f"/opt/helper --password {SECRET}", "memory": 6},
                {"pid": 6, "title": "", "memory": 0},
            ],
        },
        {
            "name": "beat",
            "command": "celery --workdir app --app config beat",
            "title": "",
            "pid": None,
            "state": "backoff",
            "restarts": 1,
            "uptime": 0.0,
            "memory": 0,
            "children": [],
        },
    ],
}


@pytest.fixture(autouse=True)
def boiler(monkeypatch):
    """A boiler that answers STATUS; the value counts the questions."""
    questions = []

    def ask(path, request, timeout):
        questions.append((str(path), request, timeout))
        return STATUS

    dyno._look.cache_clear()
    monkeypatch.setattr(dyno, "_limit", lambda: 512 << 20)
    monkeypatch.setenv("BOILER_STATUS", "/run/boiler/status")
    monkeypatch.setattr(dyno, "ask", ask)
    yield questions
    dyno._look.cache_clear()


def test_the_status_is_shown_without_command_lines(client):
    response = client.get("/status")
    assert response.status_code == 200
    assert response.json() == {
        "boiler": {"pid": 1, "state": "running", "uptime": 100, "memory": 100},
        "processes": [
            {
                "name": "web",
                "what": "gunicorn, answers requests",
                "state": "running",
                "pid": 3,
                "restarts": 2,
                "uptime": 99,
                "memory": 20,
                "children": [
                    {"pid": 4, "title": "worker", "memory": 5},
                    {"pid": 5, "title": "helper", "memory": 6},
                ],
            },
            {
                "name": "beat",
                "what": "celery beat, keeps the time",
                "state": "backoff",
                "pid": None,
                "restarts": 1,
                "uptime": None,
                "memory": None,
                "children": [],
            },
        ],
        "memory": 120,
        "limit": 512 << 20,
    }
    assert SECRET not in json.dumps(response.json())


def test_the_boiler_is_asked_once_a_second_however_many_visitors_watch(client, boiler, monkeypatch):
    monkeypatch.setattr(dyno.time, "monotonic", lambda: 1000.5)
    for _ in range(5):
        client.get("/status")
    assert boiler == [("/run/boiler/status", {"command": "status"}, 2.0)]
    monkeypatch.setattr(dyno.time, "monotonic", lambda: 1001.0)
    client.get("/status")
    assert len(boiler) == 2


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), TimeoutError(), ConnectionError("cut off")])
def test_a_boiler_that_does_not_answer_gives_503(client, monkeypatch, error):
    def fail(*_args):
        raise error

    monkeypatch.setattr(dyno, "ask", fail)
    response = client.get("/status")
    assert response.status_code == 503
    assert response.json() == {"error": "The boiler doesn't answer: try again in some seconds."}
    assert "Retry-After" in response.headers


def test_without_the_boiler_the_status_says_so(client, monkeypatch):
    monkeypatch.delenv("BOILER_STATUS")
    response = client.get("/status")
    assert response.status_code == 200
    assert response.json() == {"boiler": None, "processes": [], "memory": None, "limit": None}


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("celery --app config worker --pool prefork", "celery worker, cooks the jobs"),
        ("A=1 B=2 .venv/bin/celery -A config beat", "celery beat, keeps the time"),
        ("celery --app config flower", "celery"),
        ("postgres (embedded)", "PostgreSQL, data and queue"),
        ("node server.js --token x", "node"),
        ("A=1", "?"),
        ("", "?"),
    ],
)
def test_a_process_is_described_by_its_program(command, what):
    assert dyno._what(command) == what
