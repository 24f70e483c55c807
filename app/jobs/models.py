"""What the queue keeps in tables of its own: jobs that were started more than once, and parked ones."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now


class Redelivery(models.Model):
    """A job that was delivered more than once: how many of its starts count. Gone when it has ended."""

    task_id = models.CharField(primary_key=True, max_length=255)
    starts = models.IntegerField()


class ParkedJob(models.Model):
    """A job that ended its worker as often as a job may: it runs again only if an operator says so."""

    task_id = models.CharField(unique=True, max_length=255)
    task = models.CharField(max_length=255)
    args = models.JSONField()
    kwargs = models.JSONField()
    starts = models.PositiveIntegerField()
    parked = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ("parked",)

    def __str__(self) -> str:
        return f"{self.task}[{self.task_id}], started {self.starts} times"


class Ping(models.Model):
    """A job that only goes round, to prove that it can; `pid` and `host` did it last, `runs` counts how often."""

    sent = models.DateTimeField(db_default=Now())
    done = models.DateTimeField(null=True)
    runs = models.PositiveIntegerField(default=0)
    pid = models.PositiveIntegerField(null=True)
    host = models.CharField(max_length=255, default="")
