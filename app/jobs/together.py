"""Calls that come at the same time, carried out as one: what a database calls a group commit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Call(Generic[Item, Result]):
    """One caller's item, and what has become of it."""

    item: Item
    settled: bool = False
    result: Result | None = None
    error: BaseException | None = None


class Together(Generic[Item, Result]):
    """Calls `carry_out` with the items of all callers that came while the call before was under way.

    `carry_out` returns one result for each item, in order; what it raises is raised to each of the callers. A
    caller that is alone does not wait. Works between the threads of a process, and between gevent's greenlets.
    """

    def __init__(self, carry_out: Callable[[list[Item]], list[Result]]) -> None:
        self._carry_out = carry_out
        self._waiting: list[Call[Item, Result]] = []
        self._turn = threading.Lock()

    def __call__(self, item: Item) -> Result:
        """The result for `item`. Raises what `carry_out` raises."""
        call: Call[Item, Result] = Call(item)
        self._waiting.append(call)
        with self._turn:
            if not call.settled:
                time.sleep(0)  # lets those that are ready to come as well come first
                self._settle()
        if call.error:
            raise call.error
        return call.result  # type: ignore[return-value] (settled without an error)

    def _settle(self) -> None:
        calls, self._waiting = self._waiting, []
        try:
            results = self._carry_out([call.item for call in calls])
            for call, result in zip(calls, results, strict=True):
                call.result = result
        except BaseException as error:
            for call in calls:
                call.error = error
            raise
        finally:
            for call in calls:
                call.settled = True
