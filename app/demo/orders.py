"""Orders for jobs: what a visitor may ask for, and how many jobs may wait."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models.functions import Now
from kombu.exceptions import OperationalError as BrokerError

from boiler.settings import get
from jobs.queue import enqueue

from .models import Job
from .tasks import run

UNREACHABLE = (OperationalError, InterfaceError, BrokerError)  # the database or the broker
MAX_SECONDS = 60
EXAMPLE = '{"kind": "sleep", "seconds": 0.1, "count": 3}'
# The advisory lock of the calls that bring many jobs: any number that nothing else here uses.
TURN = 0x0DE301


class Refusal(Exception):  # noqa: N818 - not an error of the app's: the answer to one
    """An order that is not taken: the HTTP status, one sentence for the visitor, and when to try again."""

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        """Refuse with `status`; `retry_after` is in seconds, None where trying again can't help."""
        super().__init__(sentence)
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True)
class Order:
    """`count` jobs of one kind, each of so many `seconds`."""

    kind: str
    seconds: float = 0.1
    count: int = 1


def parse(body: bytes) -> Order:
    """The order in a request's body. Raises Refusal for anything but a good order in JSON."""
    if not body:
        raise Refusal(400, f"The body is empty: send a JSON object like {EXAMPLE}.")
    try:
        data = json.loads(body.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise Refusal(400, "The body is not UTF-8.") from None
    except RecursionError:
        raise Refusal(400, "The body is nested too deeply.") from None
    except ValueError:
        raise Refusal(400, f"The body is not JSON: send an object like {EXAMPLE}.") from None
    if not isinstance(data, dict):
        raise Refusal(400, f"The body must be a JSON object like {EXAMPLE}.")
    return check(data)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is Python's, not JSON's")


def check(data: Mapping[str, Any]) -> Order:
    """The order that these values make. Raises Refusal if one of them is missing, unknown or out of range."""
    if unknown := data.keys() - Order.__dataclass_fields__.keys():
        raise Refusal(400, f"There is no {json.dumps(min(unknown))[:60]}: known are kind, seconds and count.")
    if data.get("kind") not in Job.Kind.values:
        raise Refusal(400, f"kind must be one of {', '.join(Job.Kind.values)}.")
    order = Order(**data)
    # By type() because True is an int to isinstance(); NaN fails every comparison.
    if type(order.seconds) not in (int, float) or not 0 <= order.seconds <= MAX_SECONDS:
        raise Refusal(400, f"seconds must be a number from 0 to {MAX_SECONDS}.")
    if type(order.count) is not int or order.count < 1:
        raise Refusal(400, "count must be a whole number from 1.")
    return order


def place(order: Order) -> list[int]:
    """Store the order's jobs and put them on the queue, all or none; returns their ids.

    Raises Refusal if they are too many, and the database's or the broker's error if it can't be reached.
    """
    per_call, limit = get("JOBS_PER_CALL"), get("JOBS_WAITING")
    if order.count > limit:
        raise Refusal(400, f"count must be at most {limit}: more jobs may never wait.")
    if order.count > per_call:
        raise Refusal(429, f"One call may bring {per_call} jobs: send the others in calls of their own.", 1)
    ids = []
    try:
        with transaction.atomic():
            _wait_for_turn(order)
            _check_room(order.count, limit)
            ids = Job.add(order.kind, order.seconds, order.count)
            enqueue(run, [(job_id, order.kind, order.seconds) for job_id in ids])
    except BrokerError:
        # A broker that is not the database gets its jobs after the commit.
        Job.objects.filter(pk__in=ids, state=Job.State.QUEUED).delete()
        raise
    return ids


def _check_room(count: int, limit: int) -> None:
    """Raise Refusal if so many more jobs would be more than may wait."""
    waiting = Job.objects.filter(state=Job.State.QUEUED)[:limit].count()
    if waiting + count > limit:
        sentence = f"{waiting} jobs are waiting, and no more than {limit} may: try again later."
        raise Refusal(429, sentence, _seconds_until_room(waiting + count - limit))


def _wait_for_turn(order: Order) -> None:
    """Let calls that bring many jobs take turns until their commit, so that each counts the others'.

    Calls with one job don't: together they pass the limit by one job a connection at most, which is
    cheaper than letting every click wait for the commit of another.
    """
    if order.count > 1:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [TURN])


def _seconds_until_room(jobs: int) -> int:
    """How long, from 1 to 60 s, until so many jobs are taken off the queue at the pace of the last 10 s."""
    pace = Job.objects.filter(finished__gt=Now() - timedelta(seconds=10)).count() / 10
    return max(1, min(60, math.ceil(jobs / pace))) if pace else 60
