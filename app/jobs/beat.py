"""Celery beat with one leader: however many dynos run a beat, each scheduled job is sent once.

The leader holds an advisory lock of PostgreSQL, which ends with its session. Even two beats that both
believe to lead would not send a job twice: see `LeaderScheduler.apply_entry`.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any
from zlib import crc32

import psycopg
from celery.beat import SchedulingError
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import F, QuerySet
from django_celery_beat.models import PeriodicTask
from django_celery_beat.schedulers import DatabaseScheduler, ModelEntry
from kombu.exceptions import OperationalError as BrokerError

from .courier import one_line
from .database import connect

LOCK = crc32(b"double boiler: beat")
ELECTION = "election"  # the last word of the name of a connection that holds the lock or asks for it
STANDBY = 2.0  # seconds between two tries to become the leader
# Session settings that make PostgreSQL notice within 5 + 3 x 2 s that a leader's machine is gone.
NOTICE_ABSENCE = {
    "tcp_keepalives_idle": 5,
    "tcp_keepalives_interval": 2,
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": 11_000,
}
TRANSIENT = (OperationalError, InterfaceError, psycopg.Error, BrokerError)

logger = logging.getLogger(__name__)


def unit_of_work() -> AbstractContextManager[None]:
    """A transaction on pgmq. Elsewhere none, in which a job would wait for the commit: it is sent, then saved."""
    return transaction.atomic() if settings.BROKER == "pgmq" else nullcontext()


class Leadership:
    """The advisory lock, held by a connection of its own."""

    def __init__(self) -> None:
        self._session: psycopg.Connection | None = None
        self.held = False

    def confirm(self) -> bool:
        """Whether the lock is ours, after taking it if it is free. Raises psycopg.Error."""
        try:
            if self._session is None:
                self._session = connect(**NOTICE_ABSENCE, application_name=f"{settings.APPLICATION_NAME} {ELECTION}")
            # Asking for a held lock again would count it twice; an answer alone says that the session lives.
            query = "SELECT true" if self.held else f"SELECT pg_try_advisory_lock({LOCK})"
            (self.held,) = self._session.execute(query).fetchone()
        except psycopg.Error:
            self.give_up()
            raise
        return self.held

    def give_up(self) -> None:
        """Close the session, and let another beat lead."""
        session, self._session, self.held = self._session, None, False
        if session:
            with suppress(psycopg.Error):
                session.close()


class LeaderScheduler(DatabaseScheduler):
    """django-celery-beat's scheduler, sending only while it leads."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.leadership = Leadership()
        self._troubled = False
        super().__init__(*args, **options)

    def tick(self, *args: Any, **options: Any) -> float:
        """Send a job that is due, if leading. Returns the seconds until the next call."""
        try:
            led = self.leadership.held
            if not self.leadership.confirm():
                return STANDBY
            if not led:
                logger.info("leading: sending the scheduled jobs")
                self.forget()
            delay = super().tick(*args, **options)
        except TRANSIENT as error:
            self.recover(error)
            return STANDBY
        self._troubled = False
        return delay

    def forget(self) -> None:
        """Read the schedule and the times of the last runs from the database before the next job is sent."""
        self._initial_read = True
        self._heap = None
        self._dirty.clear()

    def recover(self, error: Exception) -> None:
        """Make a fresh start after the database or the broker failed; what was due is still due."""
        if not self._troubled:
            logger.error("the scheduled jobs wait for the database and the queue: %s", one_line(error))
        self._troubled = True
        connection.close()
        self.forget()

    def apply_entry(self, entry: ModelEntry, producer: Any = None) -> None:
        """Send a due job and save the time of its run, on pgmq in one transaction.

        Nothing is sent if the database says that it ran since this entry was read: a beat may have been
        suspended between confirming the lock and sending. Raises what stands in TRANSIENT.
        """
        self._dirty.discard(entry.name)  # saved here, and never later
        rows = PeriodicTask.objects.filter(pk=entry.model.pk)
        with unit_of_work():
            if not self.still_due(entry, rows.select_for_update() if connection.in_atomic_block else rows):
                self.forget()
                return
            logger.info("sending the scheduled job %s (%s)", entry.name, entry.task)
            self.send(entry, producer)
            rows.update(last_run_at=entry.model.last_run_at, total_run_count=F("total_run_count") + 1)

    def still_due(self, entry: ModelEntry, rows: QuerySet[PeriodicTask]) -> bool:
        """Whether nobody sent this entry's job since the entry was read."""
        row = rows.values("last_run_at", "enabled").first()
        return bool(row and row["enabled"] and row["last_run_at"] in (None, entry.last_run_at))

    def send(self, entry: ModelEntry, producer: Any) -> None:
        """Send the job. One that can't be sent at all is logged, so that it does not hold up the others."""
        try:
            with unit_of_work():
                self.apply_async(entry, producer=producer, advance=False)
        except SchedulingError as error:
            if isinstance(error.__context__, TRANSIENT):
                raise error.__context__ from None
            logger.exception("the scheduled job %s can't be sent", entry.name)

    def schedule_changed(self) -> bool:
        """Whether the schedule was changed since it was read. Raises django.db.Error.

        The library compares two looks, so it overlooks a change between its reading and its first look, and
        the first change of all.
        """
        return self.Changes.last_change() != self._last_timestamp

    def all_as_schedule(self) -> dict[str, ModelEntry]:
        """Read the schedule; what changes meanwhile counts as changed afterwards."""
        self._last_timestamp = self.Changes.last_change()
        return super().all_as_schedule()

    def should_sync(self) -> bool:
        """Never: `apply_entry` leaves nothing unsaved, and saving closes the connection of its transaction."""
        return False

    def enabled_models_qs(self) -> QuerySet[PeriodicTask]:
        """Every enabled entry.

        The library leaves out the crontabs of other hours, for speed, and with them those that came due
        while the dyno slept. A new entry counts from now on: without a time saved, an interval would
        start anew with every start of beat.
        """
        new = self.Model.objects.enabled().filter(last_run_at=None, start_time=None, clocked=None)
        new.update(last_run_at=F("date_changed"))
        return self.Model.objects.enabled()

    def close(self) -> None:
        """Let another beat lead at once."""
        super().close()
        self.leadership.give_up()
