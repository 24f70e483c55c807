"""The jobs: the queue, the schedule, and the database under both."""

from __future__ import annotations

from typing import Any

import pytest

from tests.verify.report import count, fail
from tests.verify.target import Seen

pytestmark = pytest.mark.inside
BROKER = {"pgmq": "DATABASE_URL", "redis": "REDIS_URL", "amqp": "AMQP_URL"}


def database(seen: Seen) -> dict[str, Any]:
    """What the database told; fails if it could not be asked."""
    found = seen.inside["database"]
    if "error" in found:
        fail(f"the database can't be asked ({found['error']}): see DATABASE_URL, and whether PostgreSQL runs")
    return found


def check_sent(seen: Seen, trip: dict[str, Any]) -> None:
    """Fail if a job could not even be sent."""
    if "error" in trip:
        fail(f"{trip['error']}: see {BROKER[seen.inside['settings']['broker']]}, and whether what it names runs")


def test_a_job_goes_round(seen: Seen) -> None:
    """A job goes round: sent, queued, done by a worker."""
    trip = seen.inside["job"]
    check_sent(seen, trip)
    if not trip["done"]:
        fail(
            f"a job was not done within {trip['seconds']:g} s: does a worker run (`app/boil status`), "
            "is it busy with other jobs, and does its log say that it is connected?"
        )


def test_a_scheduled_job_runs(seen: Seen) -> None:
    """A scheduled job is sent by beat and done by a worker."""
    trip = seen.inside["schedule"]
    check_sent(seen, trip)
    if not trip["done"]:
        fail(
            f"a job put into the schedule was not done within {trip['seconds']:g} s: "
            "if other jobs go round, look at beat (`app/boil status`, its log); if not, at the worker"
        )


def test_one_beat_leads(seen: Seen) -> None:
    """Exactly one beat of all dynos sends the scheduled jobs."""
    found = database(seen)
    if found["leaders"] != 1:
        fail(f"{count(found['leaders'], 'beat')} of all dynos lead: start a dyno with `beat`, or see its log")
    if found["beats"] > found["candidates"]:
        extra = count(found["beats"] - found["candidates"], "beat")
        fail(
            f"{extra} beside the leading one, not standing for election, so that scheduled jobs are sent twice: "
            "end it, or run it with this project's settings (CELERY_BEAT_SCHEDULER)"
        )


def test_migrations_are_applied(seen: Seen) -> None:
    """All migrations are applied."""
    if missing := database(seen)["migrations"]:
        fail(f"{count(len(missing), 'migration')} missing ({', '.join(missing[:3])}): `python app/manage.py migrate`")
