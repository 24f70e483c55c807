"""What `make verify` wants to know of a dyno, in one document: `boil inspect` prints it, /statusz answers it."""

from __future__ import annotations

import os
import socket
from collections import Counter
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection
from django.db.migrations.executor import MigrationExecutor
from kombu.exceptions import OperationalError

from boiler import census, procfile
from boiler.settings import ROOT, get, key_fingerprint
from boiler.status import ask

from .beat import ELECTION, LOCK
from .queue import QueueError
from .roundtrip import RoundTrip
from .visit import Site, look

BOILER_WAIT = 5.0  # seconds for each of connecting to the boiler, asking and reading
# Seconds until one beat must lead: the next one takes over within jobs.beat.STANDBY, on a slow machine later.
HANDOVER = 10.0
REPLACEMENT = 2.0  # seconds for a worker or pool child that has ended to have its successor
INTERVAL = 0.1  # seconds between two looks


class InspectionError(RuntimeError):
    """There is nothing to inspect; the message is one line."""


def inspect(*, visit: bool) -> dict[str, Any]:
    """Look at everything in and around this dyno, with jobs sent round; takes at most some 30 s.

    `visit` adds what a visitor of the web processes sees; one of them can't visit itself. Raises
    InspectionError if no boiler runs.
    """
    first = take_census()
    trip = start_round_trip()
    workers = sum(one["fewest"] for one in first["plan"] if one["kind"] == "gunicorn")
    document = {
        "dyno": dyno(),
        "port": get("PORT"),
        "headers": dict(Site.inside().headers),
        "settings": django_settings(),
        "fingerprint": key_fingerprint(settings.SECRET_KEY),
        "database": database(),
        "web": look(Site.inside(), workers, dyno()) if visit and workers else None,
    }
    document["job"], document["schedule"] = end_round_trip(trip)
    return {**document, **lasting(first, settled_census())}


def dyno() -> str:
    """A name for this dyno that no other on the same database has."""
    return f"{socket.gethostname()} {os.environ.get('BOILER_STATUS', '')}"


def take_census() -> dict[str, Any]:
    """The boiler's own view, the plan, and what the kernel tells."""
    path = os.environ.get("BOILER_STATUS")
    if not path:
        raise InspectionError("no boiler started this: start the dyno with `app/boil start`")
    try:
        status = ask(Path(path), {"command": "status"}, BOILER_WAIT)
    except OSError as error:
        raise InspectionError(f"the boiler does not answer: {error}") from None
    only = status["boiler"]["only"]
    entries = [entry for entry in procfile.read(ROOT / "LocalProcfile")[0] if not only or entry.name in only]
    plan = [{"name": entry.name, **vars(census.plan(entry, os.environ))} for entry in entries]
    for process in status["processes"]:
        del process["command"], process["children"], process["title"]  # the census has them, without secrets
    return {"status": status, "plan": plan, **census.take(status, ROOT, os.environ)}


def settled_census() -> dict[str, Any]:
    """A census when every process has the children that are planned, which may take REPLACEMENT."""
    deadline = monotonic() + REPLACEMENT
    while True:
        found = take_census()
        mains = {one["name"]: one["pid"] for one in found["status"]["processes"]}
        parents = Counter(process["parent"] for process in found["processes"])
        complete = all(parents[mains.get(one["name"])] >= one["fewest"] for one in found["plan"])
        if complete or monotonic() > deadline:
            return found
        sleep(INTERVAL)


def lasting(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The second census, with a mark on what was there in the first as well: all else may be passing."""
    before = {process["pid"] for process in first["processes"]}
    for process in second["processes"]:
        process["lasting"] = process["pid"] in before
    second["zombies"] = sorted({*first["zombies"]} & {*second["zombies"]})
    pids = {process["pid"] for process in first["strays"]}
    second["strays"] = [process for process in second["strays"] if process["pid"] in pids]
    return second


def django_settings() -> dict[str, Any]:
    """What a deployment must have right."""
    return {
        "debug": settings.DEBUG,
        "https": settings.HTTPS,
        "secure_cookies": settings.SESSION_COOKIE_SECURE and settings.CSRF_COOKIE_SECURE,
        "worker_class": get("WEB_WORKER_CLASS"),
        "broker": settings.BROKER,
    }


def database() -> dict[str, Any]:
    """The migrations that are missing, and the beats and the secret keys of all dynos on this database."""
    try:
        executor = MigrationExecutor(connection)
        missing = [str(migration) for migration, _ in executor.migration_plan(executor.loader.graph.leaf_nodes())]
        return {"migrations": missing, **settled_sessions()}
    except (DatabaseError, InterfaceError) as error:
        return {"error": type(error).__name__}


def settled_sessions() -> dict[str, Any]:
    """The sessions when one beat leads and all others stand by, which may take HANDOVER after a dyno went or came."""
    deadline = monotonic() + HANDOVER
    while True:
        found = sessions()
        if (found["leaders"] == 1 and found["beats"] <= found["candidates"]) or monotonic() > deadline:
            return found
        sleep(INTERVAL)


def sessions() -> dict[str, Any]:
    """Who is connected, told by the names of the connections: `PROCESS FINGERPRINT`, see config/settings.py."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT application_name, count(*) FROM pg_stat_activity WHERE datname = current_database() GROUP BY 1"
        )
        named = [(*name.split(), count) for name, count in cursor.fetchall()]
        cursor.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
            " AND (classid::bigint << 32) + objid::bigint = %s"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            [LOCK],
        )
        (leaders,) = cursor.fetchone()
    beats = {entry.name for entry in beat_entries()} | {"beat"}
    return {
        "leaders": leaders,
        # Each beat has one connection to read the schedule and one to stand for election; a beat of another
        # program's scheduler has only the first.
        "beats": sum(one[-1] for one in named if one[0] in beats and len(one) == 3),
        "candidates": sum(one[-1] for one in named if len(one) == 4 and one[2] == ELECTION),
        "fingerprints": sorted({(one[0], one[1]) for one in named if len(one) > 2 and len(one[1]) == 8}),
    }


def beat_entries() -> list[procfile.Entry]:
    """The lines of LocalProcfile that run a beat."""
    entries, _ = procfile.read(ROOT / "LocalProcfile")
    return [entry for entry in entries if census.plan(entry, os.environ).kind == "celery beat"]


def start_round_trip() -> RoundTrip | str:
    """Send the jobs; if that is impossible, the reason."""
    try:
        return RoundTrip()
    except QueueError as error:
        return str(error)
    except (DatabaseError, InterfaceError, OperationalError) as error:
        return f"sending failed: {type(error).__name__}"


def end_round_trip(trip: RoundTrip | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """How the job and the scheduled job went."""
    if isinstance(trip, str):
        return {"error": trip}, {"error": trip}
    try:
        return trip.wait()
    except (DatabaseError, InterfaceError) as error:
        failed = {"error": f"waiting failed: {type(error).__name__}"}
        return failed, failed
