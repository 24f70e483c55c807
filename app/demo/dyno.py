"""What runs inside this dyno: the boiler's status, less what is not for visitors."""

from __future__ import annotations

import os
import time
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from boiler.cgroup import memory_limit
from boiler.settings import get
from boiler.status import ask
from boiler.units import MB

ABOUT = {
    "gunicorn": "gunicorn, answers requests",
    "celery worker": "celery worker, cooks the jobs",
    "celery beat": "celery beat, keeps the time",
    "postgres": "PostgreSQL, data and queue",
}


def look() -> dict[str, Any]:
    """The boiler, its processes, the memory of all and its limit; in bytes and seconds.

    A process's memory is with its children's, the boiler's with its images'.

    `limit` is None where the dyno has none, `boiler` if no boiler started the app. Raises OSError if the boiler
    doesn't answer within 2 s.
    """
    path = os.environ.get("BOILER_STATUS")
    if not path:
        return {"boiler": None, "processes": [], "memory": None, "limit": None}
    return _look(path, int(time.monotonic()))


@lru_cache(maxsize=1)
def _look(path: str, _second: int) -> dict[str, Any]:
    """Ask the boiler once a second, however many visitors are watching."""
    status = ask(Path(path), {"command": "status"}, 2.0)
    boiler, processes = status["boiler"], status["processes"]
    own = boiler["memory"] + sum(image["memory"] for image in status["images"])
    return {
        "boiler": {
            "pid": boiler["pid"],
            "state": boiler["state"],
            "uptime": int(boiler["uptime"]),
            "memory": own,
        },
        "processes": [_process(process) for process in processes],
        "memory": own + sum(process["memory"] for process in processes),
        "limit": _limit(),
    }


@cache
def _limit() -> int | None:
    """What the container or the platform allows, the smaller of both."""
    return min((limit for limit in (memory_limit(), get("DYNO_RAM") * MB) if limit), default=None)


def _process(process: dict[str, Any]) -> dict[str, Any]:
    """A process without its command line, which may hold a secret."""
    alive = process["pid"] is not None
    return {
        "name": process["name"],
        "what": _what(process["command"]),
        "state": process["state"],
        "pid": process["pid"],
        "restarts": process["restarts"],
        "uptime": int(process["uptime"]) if alive else None,
        "memory": process["memory"] if alive else None,
        "children": [
            {"pid": child["pid"], "title": _title(child["title"], process), "memory": child["memory"]}
            for child in process["children"]
            if child["title"].strip()  # one that has ended and is not yet fetched has none
        ],
    }


def _what(command: str) -> str:
    """What a command is, told from its program's name alone: `celery worker, cooks the jobs`."""
    program = _program(command)
    if program == "celery":
        program = next((f"celery {part}" for part in ("worker", "beat") if part in command.split()), program)
    return ABOUT.get(program, program)


def _program(command: str) -> str:
    """A command's program, without its folder; settings may stand before it."""
    return next((Path(word).name for word in command.split() if "=" not in word), "?")


def _title(title: str, process: dict[str, Any]) -> str:
    """`worker` of `web: gunicorn worker`, a child of gunicorn's; of a command line, the program's name alone."""
    own = title.removeprefix(f"{process['name']}: ")
    if own == title:
        return Path(title.split(maxsplit=1)[0]).name
    return own.removeprefix(f"{_program(process['command'])} ")
