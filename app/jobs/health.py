"""/healthz: whether the database, the queue and every inner process are well."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse

from boiler.status import ask

from .deadline import Attempt
from .queue import QueueError, probe

PATH = "/healthz"
WAIT = 3.0  # seconds for the database and the queue
BOILER_WAIT = 1.0  # seconds for each of connecting, asking and reading: on a busy machine it took more than 0.4
FRESH = 1.0  # seconds that an answer serves all who ask

Findings = dict[str, list[str]]  # for each check the reasons why it failed


class HealthMiddleware:
    """Answers /healthz before anything looks at the host's name, at TLS, or for a session."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response
        self.report = Report()

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """The health as JSON, status 200 or 503; any other path is passed on."""
        if request.path != PATH:
            return self.get_response(request)
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET", "HEAD"])
        findings = self.report.get()
        reasons = [reason for found in findings.values() for reason in found]
        checks = {name: "failing" if found else "ok" for name, found in findings.items()}
        answer: dict[str, Any] = {"status": "failing" if reasons else "ok", "checks": checks}
        if reasons:
            answer["reasons"] = reasons
        response = JsonResponse(answer, status=503 if reasons else 200, headers={"Cache-Control": "no-store"})
        if request.method == "HEAD":
            response.content = b""
        return response


class Report:
    """What was found out last. Only one request at a time finds out anew, the others wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._findings: Findings = {}
        self._stale_at = 0.0

    def get(self) -> Findings:
        """Findings that are at most FRESH seconds old; takes at most some four seconds."""
        with self._lock:
            if monotonic() >= self._stale_at:
                self._findings = examine()
                self._stale_at = monotonic() + FRESH
            return self._findings


def examine() -> Findings:
    """Run every check: those that may hang side by side."""
    started = monotonic()
    attempts = {"database": Attempt(select_one), "queue": Attempt(probe)}
    findings = {"processes": inner_processes(os.environ["BOILER_STATUS"])} if "BOILER_STATUS" in os.environ else {}
    for name, attempt in attempts.items():
        findings[name] = outcome(name, attempt, max(0.0, started + WAIT - monotonic()))
    if findings["database"] and settings.BROKER == "pgmq":
        findings["queue"] = []  # the same database: one reason says it
    return findings


def outcome(name: str, attempt: Attempt[None], seconds: float) -> list[str]:
    """Why the attempt failed; nothing of what drivers say, which may hold host names and users."""
    try:
        attempt.result(seconds)
    except TimeoutError:
        return [f"The {name} does not answer within {WAIT:.0f} s."]
    except QueueError as error:
        return [f"The queue can't be used: {error}."]
    except (DatabaseError, InterfaceError):
        return [f"The {name} can't be reached."]
    return []


def select_one() -> None:
    """Raise django.db.Error if the database does not answer."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def inner_processes(path: str) -> list[str]:
    """What is wrong with the boiler's inner processes."""
    try:
        status = ask(Path(path), {"command": "states"}, BOILER_WAIT)
        states = [(process["name"], process["state"]) for process in status["processes"]]
    except (OSError, KeyError, TypeError):
        return ["The boiler does not answer."]
    return [f"The process {name} is not running: {state}." for name, state in states if state != "running"]
