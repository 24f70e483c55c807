"""/statusz: what `make verify` wants to know, for platforms without a shell. Behind STATUS_TOKEN."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from hmac import compare_digest
from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse

from boiler.settings import get

from .inspection import InspectionError, dyno, inspect

PATH = "/statusz"
WORKER_PATH = "/statusz/worker"
HOLD = 0.2  # seconds that a worker's report takes, so that others can come in meanwhile


class StatusMiddleware:
    """Answers POST /statusz and GET /statusz/worker to those who bear the token; without a token set, to nobody."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response
        self.token = get("STATUS_TOKEN")
        self.inspecting = threading.Lock()
        self.guests = Guests()

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """The document as JSON; any other path is passed on."""
        if request.path not in (PATH, WORKER_PATH) or not self.token:
            return self.get_response(request)
        if not self.is_let_in(request):
            return answer({"error": "STATUS_TOKEN is not the one that this app has"}, 401)
        if request.path == WORKER_PATH:
            return answer({"dyno": dyno(), **self.guests.report()})
        if request.method != "POST":  # it sends jobs
            return HttpResponseNotAllowed(["POST"])
        return self.inspect()

    def is_let_in(self, request: HttpRequest) -> bool:
        """Whether the request bears the token; takes the same time whatever it bears."""
        given = request.headers.get("Authorization", "").encode()
        return compare_digest(given, f"Bearer {self.token}".encode())

    def inspect(self) -> HttpResponse:
        """One inspection at a time in each worker."""
        if not self.inspecting.acquire(blocking=False):
            return answer({"error": "another inspection is under way: try again in 20 s"}, 429)
        try:
            return answer(inspect(visit=False))
        except InspectionError as error:
            return answer({"error": str(error)}, 503)
        finally:
            self.inspecting.release()


def answer(document: dict[str, Any], status: int = 200) -> HttpResponse:
    """JSON that nobody keeps."""
    return JsonResponse(document, status=status, headers={"Cache-Control": "no-store"})


class Guests:
    """Tells how many requests this process serves at once, and whether all of them in its main thread.

    That is what makes a gevent worker in fact: sync ones serve one at a time, gthread ones each in a
    thread of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._most = 0

    def report(self) -> dict[str, Any]:
        """Wait for HOLD, and say who else came in meanwhile."""
        with self._lock:
            self._inside += 1
            self._most = max(self._most, self._inside) if self._inside > 1 else 1
        time.sleep(HOLD)
        with self._lock:
            self._inside -= 1
            most = self._most
        # The kernel's number of the thread; the first thread's is the process's own.
        return {"pid": os.getpid(), "main_thread": threading.get_native_id() == os.getpid(), "at_once": most}
