"""Parking: a job that kills its worker every time is not started for ever.

A job's first start costs nothing. When the broker says that a message was delivered before, its starts are
counted in the database; beyond JOBS_STARTS of them the job fails, and stays as a ParkedJob that
`manage.py parked` lists and starts again. A job that was put back in an ordered stop is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable

from celery import Task, current_app
from django.db import transaction
from django.db.models import F

from boiler.settings import get

from .models import ParkedJob, Redelivery


class Parked(Exception):  # noqa: N818 (what has become of the job, and how Celery's log names it)
    """The job was started too often without an end."""


def count_start(task: Task) -> None:
    """Count the start of a job that was delivered before. Raises Parked if it was one too many."""
    request = task.request
    if request.is_eager or not (request.delivery_info or {}).get("redelivered"):
        return
    allowed = get("JOBS_STARTS")
    row, _ = Redelivery.objects.get_or_create(task_id=request.id, defaults={"starts": 1})  # nobody counted the first
    if row.starts < allowed:
        Redelivery.objects.filter(pk=row.pk).update(starts=F("starts") + 1)
        return
    with transaction.atomic():
        ParkedJob.objects.update_or_create(
            task_id=request.id,
            defaults={"task": task.name, "args": request.args, "kwargs": request.kwargs, "starts": row.starts},
        )
        row.delete()
    raise Parked(f"started {row.starts} times without an end: parked, see `python app/manage.py parked`")


def forget_starts(task: Task) -> None:
    """The job has ended: forget how often it was started."""
    request = task.request
    if not request.is_eager and (request.delivery_info or {}).get("redelivered"):
        Redelivery.objects.filter(task_id=request.id).delete()


def uncount_starts(task_ids: Iterable[str]) -> None:
    """These jobs were put back in an ordered stop: their last start does not count. Raises django.db.Error."""
    for task_id in task_ids:
        row, made = Redelivery.objects.get_or_create(task_id=task_id, defaults={"starts": 0})
        if not made:
            Redelivery.objects.filter(pk=row.pk, starts__gt=0).update(starts=F("starts") - 1)


def retry(job: ParkedJob) -> None:
    """Send a parked job anew, with all its starts before it. Raises KeyError if there is no such task any more."""
    with transaction.atomic():
        current_app.tasks[job.task].apply_async(job.args, job.kwargs)
        job.delete()
