"""Sending jobs: with pgmq in the caller's transaction, with other brokers after its commit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from celery import Task, current_app
from celery.contrib.django.task import DjangoTask
from celery.result import AsyncResult
from celery.signals import after_task_publish, before_task_publish
from celery.utils import uuid
from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection, transaction
from kombu.exceptions import BatchPublishError, OperationalError

from .deadline import Attempt
from .parking import count_start, forget_starts
from .transport import CALLS, count

CHECK = 3.0  # seconds that a check may take


class QueueError(RuntimeError):
    """The queue can't be used; the message is one sentence."""


class TransactionalTask(DjangoTask):
    """The base of every task: a job sent inside `transaction.atomic()` does not run if that rolls back.

    On pgmq it exists if and only if the transaction commits. On other brokers it is sent after the
    commit, and lost if the process dies between the two.
    """

    abstract = True
    Request = "jobs.worker:KillableRequest"

    def apply_async(
        self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any
    ) -> AsyncResult:
        """Celery's apply_async, bound to the transaction."""
        if settings.BROKER == "pgmq" or not connection.in_atomic_block or self.app.conf.task_always_eager:
            return super().apply_async(args, kwargs, task_id=task_id, **options)
        task_id = task_id or uuid()
        transaction.on_commit(partial(super().apply_async, args, kwargs, task_id=task_id, **options))
        return self.AsyncResult(task_id)

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Raise Parked for a job that killed its worker too often."""
        super().before_start(task_id, args, kwargs)
        count_start(self)

    def after_return(self, *outcome: Any) -> None:
        """The job has ended, well or not: it does not kill its worker."""
        super().after_return(*outcome)
        forget_starts(self)

    def retry(self, *args: Any, **options: Any) -> Any:
        """Celery's retry. Raises RuntimeError inside `transaction.atomic()`.

        The exception that ends this run would roll back the message of the next: the job would be lost.
        """
        if connection.in_atomic_block and not (self.request.called_directly or self.request.is_eager):
            raise RuntimeError(f"{self.name}: leave transaction.atomic() before retry(), which it would undo")
        return super().retry(*args, **options)


def enqueue(task: Task, calls: Sequence[tuple[Any, ...]]) -> None:
    """Send one job of `task` for each tuple of arguments.

    On pgmq in one round trip and in the caller's transaction; elsewhere over one connection after the
    commit. Raises django.db.Error or kombu's OperationalError.
    """

    if settings.BROKER == "pgmq":
        _send(task, calls)
    else:
        transaction.on_commit(partial(_send, task, calls))


def _send(task: Task, calls: Sequence[tuple[Any, ...]]) -> None:
    try:
        _send_batch(task, calls)
    except BatchPublishError as error:  # on a connection that was open when Redis went away
        raise OperationalError(str(error)) from error


def _send_batch(task: Task, calls: Sequence[tuple[Any, ...]]) -> None:
    with current_app.producer_or_acquire() as producer, producer.batch():
        if calls and settings.BROKER == "pgmq" and _may_be_copied(task):
            first, *others = calls
            task.apply_async(first, producer=producer, headers={CALLS: others})
            return
        for args in calls:
            task.apply_async(args, producer=producer)


def _may_be_copied(task: Task) -> bool:
    """Whether the messages of two calls differ in ids and arguments alone, and nobody asks to see each of them."""
    listeners = before_task_publish.receivers or after_task_publish.receivers
    compressed = getattr(task, "compression", None) or current_app.conf.task_compression
    return task.serializer == "json" and not (listeners or compressed)


def waiting() -> int:
    """How many jobs wait on the queue. Raises django.db.Error or kombu's OperationalError."""
    name = current_app.conf.task_default_queue
    if settings.BROKER == "pgmq":
        return count(name)
    with current_app.connection_for_write() as broker:
        try:
            return broker.default_channel.queue_declare(name, passive=True).message_count
        except broker.channel_errors:  # Redis has no queue that is empty, RabbitMQ none before it is first used
            return 0


def check() -> None:
    """Raise QueueError if jobs can't be sent; takes at most CHECK seconds."""
    try:
        Attempt(probe).result(CHECK)
    except TimeoutError:
        raise QueueError(f"the queue does not answer within {CHECK:.0f} s") from None


def probe() -> None:
    """`check` without a limit of time, on this thread's database connection."""
    if settings.BROKER == "pgmq":
        probe_pgmq()
    else:
        probe_broker()


def probe_pgmq() -> None:
    """Raise QueueError if the queue's tables are not there or can't be reached."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('pgmq.q_' || %s)", [current_app.conf.task_default_queue])
            (table,) = cursor.fetchone()
    except (DatabaseError, InterfaceError):
        raise QueueError("the queue's database can't be reached") from None
    if table is None:
        raise QueueError("the queue's tables are missing: run `python app/manage.py migrate`")


def probe_broker() -> None:
    """Raise QueueError if the broker can't be reached."""
    with current_app.connection_for_write(connect_timeout=CHECK) as broker:
        try:
            broker.ensure_connection(max_retries=1, interval_start=0, timeout=CHECK)
        except (*broker.connection_errors, *broker.channel_errors, OperationalError):
            raise QueueError("the queue's broker can't be reached") from None
