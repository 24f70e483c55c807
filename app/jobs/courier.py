"""One thread with one connection that fetches, renews and acknowledges a Celery worker's messages.

A message that a worker holds is invisible to the others for LEASE seconds, and the courier of a living
worker renews that every RENEW seconds: what a killed worker held comes back soon, however long its jobs
take. A lost connection is no concern of Celery's: the jobs go on, and their acknowledgements wait.
"""

from __future__ import annotations

import json
import logging
import selectors
import threading
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import Any

import psycopg
from psycopg import sql

from .database import connect
from .doorbell import Doorbell

LEASE = 15  # seconds
RENEW = 5  # seconds
POLL = 1.0  # seconds between two looks for what no NOTIFY tells: leases that ran out, messages whose time came
RETRY = 0.5  # seconds between two attempts to reach PostgreSQL
GOODBYE = 3.0  # seconds for the last acknowledgements
FETCH = 10  # messages at once if Celery sets no limit

READ = "SELECT msg_id, read_ct, message::text FROM pgmq.read(%(queue)s, %(lease)s, %(room)s)"
DELETE = "SELECT pgmq.delete(%(queue)s, %(ids)s::bigint[])"
PUT_BACK = "SELECT pg_notify(%(channel)s, ''), count(*) FROM pgmq.set_vt(%(queue)s, %(ids)s::bigint[], 0)"
EXTEND = "SELECT count(*) FROM pgmq.set_vt(%(queue)s, %(ids)s::bigint[], %(lease)s)"
ARCHIVE = "SELECT pgmq.archive(%(queue)s, %(ids)s::bigint[])"

logger = logging.getLogger(__name__)
Held = tuple[str, int]  # queue, message id


def notify_channel(queue: str) -> str:
    """The NOTIFY channel that says that something is on a queue: the one that pgmq's own triggers use."""
    return f"pgmq.q_{queue}.INSERT"


def by_queue(messages: Iterable[Held]) -> dict[str, list[int]]:
    """Message ids by their queue."""
    ids: defaultdict[str, list[int]] = defaultdict(list)
    for queue, msg_id in messages:
        ids[queue].append(msg_id)
    return ids


def parse(text: str | None, tag: str, *, redelivered: bool) -> dict[str, Any]:
    """A message as kombu expects it. Raises ValueError if nothing like Celery wrote it."""
    message = json.loads(text or "null")
    if not isinstance(message, dict) or not isinstance(message.get("properties"), dict):
        raise ValueError("not a message of Celery's")
    message["properties"]["delivery_tag"] = tag
    message["properties"].setdefault("delivery_info", {})["redelivered"] = redelivered
    return message


class Courier:
    """The worker's side of the queue. Its methods return at once and may be called from any thread."""

    def __init__(self) -> None:
        self.limit = 0  # messages to hold before no more are fetched; 0 for no limit
        self._queues: set[str] = set()
        self._inbox: SimpleQueue[tuple[dict[str, Any], str]] = SimpleQueue()
        self._lock = threading.Lock()
        self._held: dict[str, Held] = {}
        self._done: list[Held] = []
        self._returned: list[Held] = []
        self._strange: list[Held] = []
        self._closing = False
        self._thread: threading.Thread | None = None
        self._to_do = Doorbell()  # wakes the thread
        self.arrived = Doorbell()  # rings after messages came in
        self._poll_at = self._renew_at = 0.0  # by monotonic()
        self._maybe_more = False  # the queue was not found empty since the last NOTIFY

    # --- what the transport calls ---

    def consume(self, queue: str) -> None:
        """Fetch from this queue too; the first one starts the thread."""
        self._queues = {*self._queues, queue}
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
            self._thread.start()
        self._to_do.ring()

    def cancel(self, queue: str) -> None:
        """Fetch no more from this queue and put back what was not taken."""
        with self._lock:
            self._queues = self._queues - {queue}
            kept = []
            with suppress(Empty):
                while True:
                    message, origin = self._inbox.get_nowait()
                    if origin == queue:
                        self._returned.append(self._held.pop(message["properties"]["delivery_tag"]))
                    else:
                        kept.append((message, origin))
            for item in kept:
                self._inbox.put(item)
        self._to_do.ring()

    def take(self, timeout: float = 0) -> tuple[dict[str, Any], str]:
        """The next message and its queue. Raises queue.Empty after `timeout` seconds."""
        return self._inbox.get(block=timeout > 0, timeout=timeout)

    def done(self, tag: str) -> None:
        """Delete a message that was taken."""
        with self._lock:
            if held := self._held.pop(tag, None):
                self._done.append(held)
        self._to_do.ring()

    def put_back(self, tag: str) -> None:
        """Make a message that was taken visible to all workers."""
        with self._lock:
            if held := self._held.pop(tag, None):
                self._returned.append(held)
        self._to_do.ring()

    def close(self) -> None:
        """Settle everything, put back what is still held, and end the thread; takes at most GOODBYE seconds."""
        if self._thread:
            with self._lock:
                self._returned += self._held.values()
                self._held.clear()
                self._queues = set()
                self._closing = True
            self._to_do.ring()
            self._thread.join(GOODBYE)

    # --- the thread ---

    def _run(self) -> None:
        give_up_at = None
        reachable = True
        while True:
            try:
                with connect() as connection:
                    if not reachable:
                        logger.warning("the queue can be reached again")
                        reachable = True
                    self._serve(connection)
                return
            except Exception as error:  # noqa: BLE001 (a worker whose courier is gone would only look alive)
                if reachable:
                    logger.error("the queue can't be reached, trying again: %s", one_line(error))
                    reachable = False
            if self._closing:
                give_up_at = give_up_at or monotonic() + GOODBYE
                if monotonic() > give_up_at:
                    return
            sleep(RETRY)

    def _serve(self, connection: psycopg.Connection) -> None:
        """Work until closed. Raises psycopg.Error when the connection is lost."""
        listening: set[str] = set()
        connection.add_notify_handler(lambda _: self._expect_more())
        # What was held over a lost connection is renewed first: its leases may be about to end.
        self._renew_at = self._poll_at = 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            selector.register(self._to_do, selectors.EVENT_READ)
            while True:
                for queue in self._queues - listening:
                    connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(notify_channel(queue))))
                    listening.add(queue)
                self._round(connection)
                with self._lock:
                    if self._closing and not (self._done or self._returned):
                        return
                self._rest(connection, selector)

    def _expect_more(self) -> None:
        self._maybe_more = True

    def _rest(self, connection: psycopg.Connection, selector: selectors.BaseSelector) -> None:
        """Wait until something is to be done."""
        with self._lock:
            busy = self._done or self._returned or (self._maybe_more and self._room())
        timeout = 0 if busy else max(0.0, min(self._poll_at, self._renew_at) - monotonic())
        selector.select(timeout)
        self._to_do.silence()
        connection.pgconn.consume_input()
        while connection.pgconn.notifies():
            self._expect_more()

    def _room(self) -> int:
        """How many messages may be fetched now."""
        if not self._queues:
            return 0
        return max(0, self.limit - len(self._held)) if self.limit else FETCH

    def _round(self, connection: psycopg.Connection) -> None:
        """Settle, renew and fetch, all in one round trip."""
        now = monotonic()
        with self._lock:
            settled = [(DELETE, self._done), (PUT_BACK, self._returned), (ARCHIVE, self._strange)]
            self._done, self._returned, self._strange = [], [], []
            held = list(self._held.values()) if now >= self._renew_at else []
            room = self._room() if self._maybe_more or now >= self._poll_at else 0
            queues = self._queues
        if now >= self._renew_at:
            self._renew_at = now + RENEW
        if now >= self._poll_at:
            self._poll_at = now + POLL
        statements = [
            (query, queue, ids)
            for query, messages in (*settled, (EXTEND, held))
            for queue, ids in by_queue(messages).items()
        ]
        if not (statements or room):
            return
        if room:
            self._maybe_more = False
        try:
            with connection.pipeline():
                for query, queue, ids in statements:
                    connection.execute(
                        query, {"queue": queue, "ids": ids, "lease": LEASE, "channel": notify_channel(queue)}
                    )
                reads = [
                    (q, connection.execute(READ, {"queue": q, "lease": LEASE, "room": room})) for q in queues if room
                ]
        except psycopg.Error:
            with self._lock:
                self._done[:0], self._returned[:0], self._strange[:0] = (messages for _, messages in settled)
            raise
        for queue, cursor in reads:
            self._receive(queue, cursor.fetchall(), room)

    def _receive(self, queue: str, rows: list[tuple[int, int, str]], room: int) -> None:
        self._maybe_more = self._maybe_more or len(rows) >= room
        for msg_id, deliveries, text in sorted(rows):
            tag = f"{queue}:{msg_id}"
            with self._lock:
                try:
                    message = parse(text, tag, redelivered=deliveries > 1)
                except ValueError as error:
                    logger.error("message %s of queue %s goes to its archive: %s", msg_id, queue, error)
                    self._strange.append((queue, msg_id))
                    continue
                if queue not in self._queues:
                    self._returned.append((queue, msg_id))
                    continue
                self._held[tag] = (queue, msg_id)
                self._inbox.put((message, queue))
        if rows:
            self.arrived.ring()


def one_line(error: Exception) -> str:
    """The error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
