"""Tasks for the tests of app/jobs; they write down what happens to them in a file."""

from __future__ import annotations

import json
import os
import time

from celery import shared_task
from django.db import connection, transaction


def write(file: str, **entry: object) -> None:
    """One line, in one write: appending processes do not mix."""
    line = json.dumps({"pid": os.getpid(), "at": time.time(), **entry}) + "\n"
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, line.encode())
    os.close(descriptor)


@shared_task
def note(file: str, name: str, seconds: float = 0) -> None:
    write(file, what="start", name=name)
    time.sleep(seconds)
    write(file, what="end", name=name)


@shared_task
def touch_database(file: str, name: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        write(file, what="end", name=name, backend=cursor.fetchone()[0])


def hold_transaction(milliseconds: int) -> dict[str, object]:
    """Keep a transaction open; tells by which of PostgreSQL's processes, from when to when, and if it stayed alone."""
    mark = os.urandom(8).hex()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid(), clock_timestamp()::text, set_config('test.holder', %s, true)", [mark])
        backend, began, _ = cursor.fetchone()
        cursor.execute("SELECT pg_sleep(%s)", [milliseconds / 1000])
        cursor.execute("SELECT pg_backend_pid(), clock_timestamp()::text, current_setting('test.holder', true)")
        same, ended, holder = cursor.fetchone()
    alone = (same, holder) == (backend, mark)
    return {"pid": os.getpid(), "backend": backend, "began": began, "ended": ended, "alone": alone}


@shared_task
def hold(file: str, milliseconds: int) -> None:
    write(file, what="held", **hold_transaction(milliseconds))


@shared_task(bind=True, max_retries=1, default_retry_delay=0)
def retry_once(self, file: str, name: str, in_transaction: bool) -> None:
    write(file, what="start", name=name)
    if self.request.retries:
        write(file, what="end", name=name)
    elif in_transaction:
        with transaction.atomic():
            self.retry()
    else:
        self.retry()
