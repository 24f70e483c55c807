"""What Celery runs for the demo."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from celery import Task, shared_task
from celery.exceptions import Reject
from celery.signals import task_failure
from django.db import InterfaceError, OperationalError, connection
from django.db.models.functions import Now

from boiler.settings import get
from jobs.parking import Parked

from .models import Job

# Written out, because Django would make them anew for every job: more work (measured: 60 % of all that a pool child
# does for the shortest job) than sending them and running the job.
START = """
    UPDATE demo_job SET state = 'running', pid = %(pid)s, started = statement_timestamp(), runs = runs + 1
    WHERE id = %(id)s AND state IN ('queued', 'running')
"""
FINISH = """
    UPDATE demo_job SET state = %(state)s, finished = statement_timestamp(), error = %(error)s
    WHERE id = %(id)s AND state = 'running'
"""


def burn(seconds: float) -> None:
    """Keep one processor busy until this thread has used `seconds` of its time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1000))


def wait_on_database(seconds: float) -> None:
    """Wait for PostgreSQL to answer: I/O that overlaps under every kind of Celery pool."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])


WORK: dict[str, Callable[[float], None]] = {
    Job.Kind.SLEEP: time.sleep,
    Job.Kind.CPU: burn,
    Job.Kind.IO: wait_on_database,
}


@shared_task
def run(job_id: int, kind: str, seconds: float) -> None:
    """Do the job's work and record who did it; the arguments spare a SELECT.

    What goes wrong is recorded in the job and raised for Celery to log. A job whose database can't be
    reached goes back on the queue: it is neither done nor failed, and Celery's retry would need the
    same database.
    """
    try:
        cook(job_id, kind, seconds)
    except (OperationalError, InterfaceError) as error:
        connection.close()
        time.sleep(1)  # a queue elsewhere would hand it out again at once, and again
        raise Reject(one_line(error), requeue=True) from None  # Celery logs it


def cook(job_id: int, kind: str, seconds: float) -> None:
    """The job's work between its two records.

    A job that was delivered again after its end is left alone; one that a killed worker left running
    starts anew.
    """
    with connection.cursor() as cursor:
        cursor.execute(START, {"id": job_id, "pid": os.getpid()})
        started = cursor.rowcount
    if not started:
        return
    try:
        WORK[kind](seconds)
    except Exception as error:
        finish(job_id, Job.State.FAILED, one_line(error))
        raise
    finish(job_id, Job.State.DONE)


def finish(job_id: int, state: Job.State, error: str = "") -> None:
    """Record the end of a running job; the first end counts if it was delivered twice at once."""
    with connection.cursor() as cursor:
        cursor.execute(FINISH, {"id": job_id, "state": state, "error": error})


def one_line(error: Exception) -> str:
    """The error in the length and the single line that the job has room for."""
    words = f"{type(error).__name__}: {error}".replace("\0", " ").split()
    return " ".join(words)[: Job._meta.get_field("error").max_length]


@task_failure.connect
def record_failure(sender: Task, exception: Exception, args: tuple[Any, ...], **_: Any) -> None:
    """Record a job that Celery ends without running it: a parked one (jobs/parking.py)."""
    if sender.name == run.name and isinstance(exception, Parked):
        finish(args[0], Job.State.FAILED, one_line(exception))


@shared_task
def prune() -> int:
    """Delete the jobs that finished more than JOBS_KEPT seconds ago; returns how many."""
    deleted, _ = Job.objects.filter(finished__lt=Now() - timedelta(seconds=get("JOBS_KEPT"))).delete()
    return deleted
