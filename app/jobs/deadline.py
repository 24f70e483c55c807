"""Bounding the time of what has no timeout of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from django.db import connections

Result = TypeVar("Result")


class Attempt(Generic[Result]):
    """A call in a thread of its own (a greenlet under gevent), with database connections of its own."""

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self._returned: list[Result] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._returned.append(self._function())
        except Exception as error:  # noqa: BLE001 (raised again by result())
            self._error = error
        finally:
            connections.close_all()

    def result(self, timeout: float) -> Result:
        """What the call returns or raises. Raises TimeoutError after `timeout` seconds, and leaves the call alone."""
        self._thread.join(timeout)
        if self._error:
            raise self._error
        if not self._returned:
            raise TimeoutError
        return self._returned[0]
