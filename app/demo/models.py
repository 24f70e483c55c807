"""A job of the demo, from the click to its end."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import islice
from typing import Any

from django.db import connection, models
from django.db.models.functions import Now


class Job(models.Model):
    """One job: what it is to do, how far it is, and which process runs it.

    All timestamps come from the database's clock, so they agree whichever dyno wrote them.
    """

    class Kind(models.TextChoices):
        """What a job spends its seconds on."""

        SLEEP = "sleep"
        CPU = "cpu"
        IO = "io"

    class State(models.TextChoices):
        """How far a job is; the last two are final."""

        QUEUED = "queued"
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"

    kind = models.CharField(max_length=5, choices=Kind)
    seconds = models.FloatField()
    state = models.CharField(max_length=7, choices=State, db_default=State.QUEUED)
    created = models.DateTimeField(db_default=Now())
    started = models.DateTimeField(null=True)
    finished = models.DateTimeField(null=True)
    pid = models.IntegerField(null=True)
    runs = models.IntegerField(db_default=0)
    error = models.CharField(max_length=200, db_default="")

    class Meta:
        indexes = (
            # Each holds only the rows it is asked for: counting the queue stays cheap among many
            # finished jobs, and pruning among many queued ones.
            models.Index("id", name="demo_job_queued", condition=models.Q(state="queued")),
            models.Index("finished", name="demo_job_finished", condition=models.Q(finished__isnull=False)),
            models.Index("id", name="demo_job_running", condition=models.Q(state="running")),
        )

    def __str__(self) -> str:
        return f"job {self.pk}: {self.kind} for {self.seconds} s, {self.state}"

    @property
    def waited(self) -> timedelta | None:
        """How long the job was on the queue; None while it still is."""
        return self.started and self.started - self.created

    @property
    def took(self) -> timedelta | None:
        """How long the job ran; None before its end."""
        return self.finished and self.finished - self.started

    @classmethod
    def add(cls, orders: Sequence[tuple[str, float, int]]) -> list[list[int]]:
        """Store for each (kind, seconds, count) so many jobs that are all alike; returns their ids.

        PostgreSQL makes the rows: bulk_create would keep a web worker busy for 0.1 s per 1,000 jobs.
        """
        kinds, seconds, counts = (list(column) for column in zip(*orders, strict=True))
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO demo_job (kind, seconds) SELECT kind, seconds"
                " FROM unnest(%s::text[], %s::float8[], %s::int[]) WITH ORDINALITY AS o(kind, seconds, count, place),"
                " generate_series(1, count) ORDER BY place RETURNING id",
                [kinds, seconds, counts],
            )
            ids = iter(sorted(row[0] for row in cursor.fetchall()))
        return [list(islice(ids, count)) for count in counts]

    def as_json(self) -> dict[str, Any]:
        """The job as the API shows it; timestamps in ISO 8601, null for what has not happened yet."""
        stamps = {name: getattr(self, name) for name in ("created", "started", "finished")}
        return {
            "id": self.pk,
            "kind": self.kind,
            "seconds": self.seconds,
            "state": self.state,
            **{name: stamp and stamp.isoformat() for name, stamp in stamps.items()},
            "pid": self.pid,
            "runs": self.runs,
            "error": self.error or None,
        }


class Bench(models.Model):
    """The last benchmark that a visitor ran: when it began."""

    began = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"benchmark of {self.began}"
