"""The kombu transport on which Celery's queue lives in Django's own PostgreSQL, in pgmq's tables.

kombu's own pgmq transport publishes on connections that greenlets end up sharing, takes four round
trips a message, and hides what a killed worker held for as long as the longest job may take. This one

- publishes on Django's connection, in the caller's transaction, in one round trip;
- consumes over one connection per worker: jobs/courier.py.
"""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import suppress
from datetime import datetime
from functools import cached_property, partial
from queue import Empty
from typing import Any

from amqp.protocol import queue_declare_ok_t
from celery.utils import uuid
from django.db import connection, transaction
from kombu.transport import virtual
from kombu.utils.json import dumps

from .courier import Courier, notify_channel

Message = dict[str, Any]

SEND = """
    SELECT pg_notify(%s, ''), count(*)
    FROM pgmq.send_batch(%s, %s::jsonb[], coalesce(%s::timestamptz, clock_timestamp()))
"""
CREATE = "SELECT pgmq.create(%s) WHERE NOT EXISTS (SELECT FROM pgmq.meta WHERE queue_name = %s)"

LONGEST_REPR = 1024  # characters of the arguments in Celery's logs
# A header that multiplies a message: the arguments of further calls of the same task.
CALLS = "calls"

SIGNAL_WAIT = 0.25  # seconds

# Queues that are known to exist; the migration creates Celery's default one.
_existing = {"celery"}


def send(queue: str, messages: list[Message], eta: str | None = None) -> None:
    """Put messages on a queue, in Django's current transaction if there is one.

    `eta`: ISO time before which no worker sees them. Raises django.db.Error.
    """
    with connection.cursor() as cursor:
        cursor.execute(SEND, [notify_channel(queue), queue, [json.dumps(m) for m in messages], eta])


def count(queue: str) -> int:
    """How many messages a worker could fetch now. Raises django.db.Error."""
    table = connection.ops.quote_name(f"q_{queue}".lower())
    with connection.cursor() as cursor:
        # Unlike clock_timestamp(), statement_timestamp() lets PostgreSQL use the index.
        cursor.execute(f"SELECT count(*) FROM pgmq.{table} WHERE vt <= statement_timestamp()")  # noqa: S608
        return cursor.fetchone()[0]


def multiply(message: Message) -> list[Message]:
    """The message and, for each of the further calls in its headers, a copy with arguments and an id of its own.

    Celery takes 0.2 ms to make a message, a copy takes a tenth of it.
    """
    headers, properties = message["headers"], message["properties"]
    calls = headers.pop(CALLS)
    _, kwargs, embed = json.loads(message["body"])
    messages = [message]
    for args in calls:
        task_id = uuid()
        root = task_id if headers["root_id"] == headers["id"] else headers["root_id"]
        copy = {"id": task_id, "root_id": root, "argsrepr": repr(args)[:LONGEST_REPR]}
        body = dumps((args, kwargs, embed))
        messages.append(
            {
                **message,
                "body": body,
                "headers": {**headers, **copy},
                "properties": {**properties, "correlation_id": task_id},
            }
        )
    return messages


class Batch:
    """Messages that kombu's Producer.batch() holds back, to be sent in one round trip."""

    def __init__(self, channel: Channel, max_size: int) -> None:
        self.channel = channel
        self._max_size = max_size
        self._messages: defaultdict[tuple[str, str | None], list[Message]] = defaultdict(list)

    def publish(self, message: Message, exchange: str, routing_key: str, **options: Any) -> None:
        """Keep a message, or send all when there are enough of them."""
        self.channel.batch = self
        try:
            self.channel.basic_publish(message, exchange, routing_key, **options)
        finally:
            self.channel.batch = None
        if sum(map(len, self._messages.values())) >= self._max_size:
            self.flush()

    def add(self, queue: str, messages: list[Message]) -> None:
        """Keep messages that have found their queue."""
        self._messages[queue, eta_of(messages[0])] += messages

    def flush(self) -> None:
        """Send what was kept."""
        while self._messages:
            (queue, eta), messages = self._messages.popitem()
            send(queue, messages, eta)

    def discard(self) -> None:
        """Forget what was kept."""
        self._messages.clear()

    def close(self) -> None:
        """Nothing is left to release."""


def eta_of(message: Message) -> str | None:
    """The ISO time before which Celery would only keep the message in a worker's memory."""
    eta = (message.get("headers") or {}).get("eta")
    return eta and datetime.fromisoformat(eta).astimezone().isoformat()


class Channel(virtual.Channel):
    """Publishes on Django's connection; consumes through the transport's courier."""

    # The body is JSON text: base64 would make it a third longer and unreadable in SQL.
    body_encoding = "utf-8"
    # The courier makes visible again what was not acknowledged.
    do_restore = False
    batch: Batch | None = None

    def _put(self, queue: str, message: Message, **_: Any) -> None:
        messages = multiply(message) if CALLS in (message.get("headers") or {}) else [message]
        if self.batch:
            self.batch.add(queue, messages)
        else:
            send(queue, messages, eta_of(message))

    def encode_body(self, body: str | bytes, encoding: str | None = None) -> tuple[str, str | None]:
        """Text as it is; bytes, as compression makes them, in base64."""
        return super().encode_body(body, "base64" if isinstance(body, bytes) else encoding)

    def create_publish_batch(self, max_size: int) -> Batch:
        """What Producer.batch() publishes to."""
        return Batch(self, max_size)

    def queue_declare(self, queue: str, passive: bool = False, **options: Any) -> queue_declare_ok_t:
        """Create the queue if this process does not know it; `passive` only counts its messages."""
        if passive:
            return super().queue_declare(queue, passive=True, **options)
        self._new_queue(queue)
        return queue_declare_ok_t(queue, 0, 0)

    def _new_queue(self, queue: str, **_: Any) -> None:
        if queue in _existing:
            return
        with connection.cursor() as cursor:
            cursor.execute(CREATE, [queue, queue])
        transaction.on_commit(partial(_existing.add, queue))

    def _has_queue(self, queue: str, **_: Any) -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT FROM pgmq.meta WHERE queue_name = %s", [queue])
            return cursor.rowcount == 1

    def _size(self, queue: str) -> int:
        return count(queue)

    def _purge(self, queue: str) -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pgmq.purge_queue(%s)", [queue])
            return cursor.fetchone()[0]

    def _delete(self, queue: str, *_: Any, **__: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pgmq.drop_queue(%s)", [queue])
        _existing.discard(queue)

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        """Hold at most `prefetch_count` unacknowledged messages; 0 for no limit."""
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        self.connection.courier.limit = prefetch_count

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **options: Any) -> None:
        """Have the courier fetch from the queue."""
        super().basic_consume(queue, no_ack, callback, consumer_tag, **options)
        self.connection.courier.consume(queue)

    def basic_cancel(self, consumer_tag: str) -> None:
        """Fetch no more from the consumer's queue, and put back what no one has seen yet."""
        queue = self._tag_to_queue.get(consumer_tag)
        super().basic_cancel(consumer_tag)
        if queue is not None:
            self.connection.courier.cancel(queue)

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Delete the message: its job is done."""
        super().basic_ack(delivery_tag, multiple)
        self.connection.courier.done(delivery_tag)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Make the message visible at once, or delete it."""
        self.qos.ack(delivery_tag)
        if requeue:
            self.connection.courier.put_back(delivery_tag)
        else:
            self.connection.courier.done(delivery_tag)

    def _restore(self, message: virtual.Message) -> None:
        self.connection.courier.put_back(message.delivery_tag)


class Transport(virtual.Transport):
    """Connects nothing until something is published or consumed.

    It works in Celery's event loop: without one, billiard's pool shares a pipe among the children, and
    never gives out a job again after a child is killed that held the pipe's lock.
    """

    Channel = Channel
    driver_type = driver_name = "pgmq"
    implements = virtual.Transport.implements.extend(
        asynchronous=True, exchange_type=frozenset(["direct"]), batch_publish=True
    )

    _loop: Any = None

    @cached_property
    def courier(self) -> Courier:
        """Where messages come from; publishers have none."""
        return Courier()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:  # noqa: ARG002
        """Deliver in Celery's event loop whatever arrives."""
        loop.add_reader(self.courier.arrived, self.deliver_arrived)
        self._loop = loop

    def deliver_arrived(self) -> None:
        """Deliver all the messages that arrived."""
        self.courier.arrived.silence()
        with suppress(Empty):
            while True:
                self._deliver(*self.courier.take())

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:  # noqa: ARG002
        """Deliver the next message, for pools without an event loop.

        Raises TimeoutError after `timeout` seconds, or a quarter of one: between two calls Celery looks
        whether it has been told to stop.
        """
        try:
            arrived = self.courier.take(timeout=min(timeout or SIGNAL_WAIT, SIGNAL_WAIT))
        except Empty:
            raise TimeoutError from None
        self._deliver(*arrived)

    def close_connection(self, connection: Any) -> None:
        """Put back what was not acknowledged, and disconnect."""
        super().close_connection(connection)
        if courier := self.__dict__.pop("courier", None):
            if self._loop:
                self._loop.remove_reader(courier.arrived)
            courier.close()
