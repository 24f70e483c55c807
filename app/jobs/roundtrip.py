"""Sends one job through the queue and one through the schedule, and sees them come back."""

from __future__ import annotations

import json
from datetime import timedelta
from time import monotonic, sleep
from typing import Any

from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, PeriodicTask

from .models import Ping
from .queue import check
from .tasks import ping

# Seconds that a job may take until it is done. Beat looks every 5 s whether the schedule has changed.
JOB_WAIT = 10.0
SCHEDULE_WAIT = 15.0
INTERVAL = 0.05  # seconds between two looks
NAME = "verify: ping"  # of the rows in the schedule, which are gone afterwards
ABANDONED = timedelta(minutes=10)  # rows that are older were left by one that was killed


class RoundTrip:
    """One job sent now, and one that beat is to send at once. Raises QueueError if the queue can't be used."""

    def __init__(self) -> None:
        check()
        clear_abandoned()
        self._began = monotonic()
        self._schedule, self._scheduled = schedule_ping()
        self._sent = send_ping()

    def wait(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """How the job and the scheduled job went; takes at most SCHEDULE_WAIT, and leaves nothing behind."""
        try:
            return self._outcome(self._sent, JOB_WAIT), self._outcome(self._scheduled, SCHEDULE_WAIT)
        finally:
            remove(self._schedule)
            Ping.objects.filter(pk__in=(self._sent.pk, self._scheduled.pk)).delete()

    def _outcome(self, row: Ping, seconds: float) -> dict[str, Any]:
        while True:
            row.refresh_from_db()
            if row.done:
                took = (row.done - row.sent).total_seconds()
                return {"done": True, "seconds": took, "pid": row.pid, "host": row.host}
            if monotonic() > self._began + seconds:
                return {"done": False, "seconds": seconds}
            sleep(INTERVAL)


def send_ping() -> Ping:
    """Send a job that records itself."""
    with transaction.atomic():
        row = Ping.objects.create()
        ping.delay(row.pk)
    row.refresh_from_db()
    return row


def schedule_ping() -> tuple[PeriodicTask, Ping]:
    """Put such a job into the schedule, due now and once."""
    with transaction.atomic():
        row = Ping.objects.create()
        now = ClockedSchedule.objects.create(clocked_time=timezone.now())
        task = PeriodicTask.objects.create(
            name=f"{NAME} {row.pk}", task=ping.name, args=json.dumps([row.pk]), clocked=now, one_off=True
        )
    row.refresh_from_db()
    return task, row


def remove(task: PeriodicTask) -> None:
    """Take a row out of the schedule, with the time that is only its own."""
    clocked = task.clocked
    task.delete()
    clocked.delete()


def clear_abandoned() -> None:
    """Delete what others left behind."""
    for task in PeriodicTask.objects.filter(name__startswith=NAME, date_changed__lt=timezone.now() - ABANDONED):
        remove(task)
    Ping.objects.filter(sent__lt=Now() - ABANDONED).delete()
