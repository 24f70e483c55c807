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
from jobs.together import Together

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
    outcome = _place_together(order)
    if isinstance(outcome, Refusal):
        raise outcome
    return outcome


def _place_all(orders: list[Order]) -> list[list[int] | Refusal]:
    """Place the orders that came at the same time in one transaction: the ids of each, or why it is refused."""
    ids: list[list[int]] = []
    try:
        with transaction.atomic():
            _wait_for_turn(orders)
            refusals = _check_room(orders)
            taken = [order for order, refusal in zip(orders, refusals, strict=True) if not refusal]
            if taken:
                ids = Job.add([(order.kind, order.seconds, order.count) for order in taken])
                calls = zip(taken, ids, strict=True)
                enqueue(run, [(job_id, order.kind, order.seconds) for order, some in calls for job_id in some])
    except BrokerError:
        # A broker that is not the database gets its jobs after the commit.
        Job.objects.filter(pk__in=[job_id for some in ids for job_id in some], state=Job.State.QUEUED).delete()
        raise
    given = iter(ids)
    return [refusal or next(given) for refusal in refusals]


# Of a storm of small orders a transaction each would cost the web more than all else together (measured: 60 %).
_place_together = Together(_place_all)


def _check_room(orders: list[Order]) -> list[Refusal | None]:
    """For each order, in turn, the refusal if its jobs would be more than may wait."""
    limit = get("JOBS_WAITING")
    waiting = Job.objects.filter(state=Job.State.QUEUED)[:limit].count()
    found: list[Refusal | None] = []
    for order in orders:
        if waiting + order.count > limit:
            sentence = f"{waiting} jobs are waiting, and no more than {limit} may: try again later."
            found.append(Refusal(429, sentence, _seconds_until_room(waiting + order.count - limit)))
        else:
            waiting += order.count
            found.append(None)
    return found


def _wait_for_turn(orders: list[Order]) -> None:
    """Let calls that bring many jobs take turns until their commit, so that each counts the others'.

    Calls with one job don't: together they pass the limit by one job a connection at most, which is
    cheaper than letting every click wait for the commit of another.
    """
    if any(order.count > 1 for order in orders):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [TURN])


def _seconds_until_room(jobs: int) -> int:
    """How long, from 1 to 60 s, until so many jobs are taken off the queue at the pace of the last 10 s."""
    pace = Job.objects.filter(finished__gt=Now() - timedelta(seconds=10)).count() / 10
    return max(1, min(60, math.ceil(jobs / pace))) if pace else 60
