"""How a check says what is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import pytest

MOST = 5  # processes named in a line


def fail(message: str) -> NoReturn:
    """End the check: what is wrong, where, and what to do, in one line."""
    pytest.fail(message, pytrace=False)


def count(number: int, what: str) -> str:
    """`1 worker`, `2 workers`, `0 forked children`."""
    plural = what.replace("child", "children") if what.endswith("child") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


def listed(processes: Iterable[Any]) -> str:
    """Processes or pids: `pid 12 (sleep 100), pid 13`."""
    words = []
    for process in sorted(processes, key=lambda one: one["pid"] if isinstance(one, dict) else one):
        if isinstance(process, dict):
            words.append(f"pid {process['pid']} ({process['title'] or '?'})")
        else:
            words.append(f"pid {process}")
    return ", ".join(words[:MOST]) + (f" and {len(words) - MOST} more" if len(words) > MOST else "")
