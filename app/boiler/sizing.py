"""Sizes that fit: how many processes, connections and jobs at once the dyno's memory, CPUs and database bear.

`app/boil plan` prints the plan with its reasons. It is what boiler/settings.py takes for settings that nobody set.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from . import cgroup, postgres, settings
from .units import MB, as_size

# What a process takes, in bytes; measured with the demo under full load (docs/performance.md).
BOILER = 20 * MB
APP = 64 * MB  # one interpreter with the app loaded, before the first start has measured it
OWN = 10 * MB  # of a process that shares the app with others: what it has for itself,
COPIED = 0.25  # and this part of the app, which it has written to
CONNECTION = 50 << 10  # an idle client's greenlet
UNEVEN = 1.5  # times its share of the clients may come to one web worker (seen: 376 of 500, with two)
# Processes that are there whatever the plan says: gunicorn's and Celery's main ones, beat.
MAIN = 3
INTERPRETERS = 2  # that hold a copy of the app: one for gunicorn, one for Celery and beat
ROOM = 0.82  # of the memory for the processes,
CLIENTS = 0.08  # for idle clients; the rest stays free
# Database connections besides those of web workers and pool children: one for the queue, two of beat,
OTHERS = 3
SPARE = 3  # and for whoever else comes: a migration, psql.
MAX_POOL = 8  # more than that per web worker makes nothing faster
UNKNOWN_CONNECTIONS = 20  # the smallest limit that is sold: Heroku's essential plans


@dataclass(frozen=True)
class Machine:
    """What there is: memory and one process's share of it in bytes, CPUs, the database's connections."""

    memory: int
    cpus: float
    connections: int = UNKNOWN_CONNECTIONS
    app: int = APP
    shared: int = 0  # of `app`, what is in memory once


@dataclass(frozen=True)
class Plan:
    """The sizes for a machine, by the settings' names, each with its reason."""

    machine: Machine
    values: dict[str, int]
    reasons: dict[str, str]
    used: int  # bytes, under full load

    @property
    def fits(self) -> bool:
        return self.used <= self.machine.memory


def own(machine: Machine) -> int:
    """Bytes that one more process takes, the app's shared pages left out."""
    return OWN + int(COPIED * (machine.app - machine.shared))


def memory_for(machine: Machine, processes: int) -> int:
    """Bytes of a dyno with so many web workers and pool children together."""
    interpreters = machine.shared + INTERPRETERS * (machine.app - machine.shared)
    return BOILER + interpreters + (MAIN + processes) * own(machine)


def pool_for(machine: Machine, web: int, children: int) -> int:
    """Database connections left for each web worker."""
    return (machine.connections - SPARE - OTHERS - children) // web


def plan(machine: Machine) -> Plan:
    """Two web workers for the first CPU and one for each more, twice as many pool children, or what fits.

    Where memory or database connections don't suffice, both get less in the same proportion, but one each.
    """
    budget = int(machine.memory * ROOM)
    whole = math.ceil(machine.cpus)
    web, children = most = (whole + 1, 2 * (whole + 1))

    def lacks() -> str:
        if memory_for(machine, web + children) > budget:
            return f"no more fit in {as_size(machine.memory)}"
        if pool_for(machine, web, children) < 2:
            return f"no more with {machine.connections} database connections"
        return ""

    why = f"for {machine.cpus:g} CPUs"
    while (lack := lacks()) and web + children > 2:
        why = lack
        if web > 1 and web * most[1] >= children * most[0]:
            web -= 1
        else:
            children -= 1
    used = memory_for(machine, web + children)
    left = max(0, budget - used)
    pool = max(1, min(MAX_POOL, pool_for(machine, web, children)))
    clients = CLIENTS * machine.memory / CONNECTION
    clients = max(100, min(1000, int(min(clients, clients * UNEVEN / web))))
    child = machine.app + own(machine) + left // (web + children)
    values = {
        "WEB_CONCURRENCY": web,
        "WEB_CONNECTIONS": clients,
        "WEB_MAX_REQUESTS": 100_000,
        "DATABASE_POOL": pool,
        "WORKER_CONCURRENCY": children,
        "WORKER_CHILD_MEMORY": math.ceil(child / MB),
    }
    reasons = {
        "WEB_CONCURRENCY": f"gunicorn workers, {why}",
        "WEB_CONNECTIONS": f"clients of each, which come unevenly; {as_size(CLIENTS * machine.memory)} for all of them",
        "WEB_MAX_REQUESTS": "requests of each before a fresh one takes over, so that no leak adds up",
        "DATABASE_POOL": f"of each; {web} x {pool} + {children} + {OTHERS} of {machine.connections} connections",
        "WORKER_CONCURRENCY": f"Celery pool children, {why}",
        "WORKER_CHILD_MEMORY": f"MB that a child may grow to; it starts with {as_size(machine.app)}, mostly shared",
    }
    return Plan(machine, values, reasons, used)


def default(name: str, environ: Mapping[str, str] | None = None) -> str:
    """What this machine's plan has for a setting; "" for one that is not planned."""
    if name not in PLANNED:
        return ""
    return str(plan(here(settings.get("DYNO_RAM", environ))).values[name])


PLANNED = frozenset(plan(Machine(512 * MB, 1)).values)


# --- what there is ---


@cache
def here(dyno_ram: int = 0) -> Machine:
    """This machine: the limits of the container, what the platform says (in MB), what the last start measured.

    How many connections the embedded PostgreSQL has is known without a start.
    """
    limits = [limit for limit in (cgroup.memory_limit(), dyno_ram * MB, _physical_memory()) if limit]
    known = recall() | ({"connections": postgres.CONNECTIONS} if settings.is_embedded() else {})
    return replace(Machine(min(limits), min(cgroup.cpu_limit() or math.inf, _cpus())), **known)


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- what a start has measured ---


def _memory_file() -> Path:
    return settings.runtime_dir() / "measured"


def remember(app: int, shared: int, connections: int) -> None:
    """Keep what `manage.py ready` has measured: bytes of a process with the app, connections of the database.

    `shared`: how many of the bytes are SHARED_IMPORTS'.
    """
    with suppress(OSError):  # the folder is the boiler's: without one there is nobody to remember for
        _memory_file().write_text(json.dumps({"app": app, "shared": shared, "connections": connections}))


def recall() -> dict[str, int]:
    """What was measured at the last start; empty if nothing was."""
    try:
        found = json.loads(_memory_file().read_text())
        return {name: int(found[name]) for name in ("app", "shared", "connections")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
