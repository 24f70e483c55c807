"""One thread with one connection that fetches, renews and acknowledges a Celery worker's messages.

A message that a worker holds is invisible to the others for LEASE seconds, and the courier of a living
worker renews that every RENEW seconds: what a killed worker held comes back soon, however long its jobs
take. A lost connection is no concern of Celery's: the jobs go on, and their acknowledgements wait.

While jobs are short, round trips to the database would take longer than the jobs: the courier fetches ahead what
will be run within AHEAD seconds, and gathers acknowledgements for GATHER seconds. Celery still gets no more than it
asked for, and what lies here while long jobs run goes back, for other workers to take.
"""

from __future__ import annotations

import json
import logging
import selectors
import threading
from collections import defaultdict, deque
from collections.abc import Iterable
from queue import Empty
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
AHEAD = 0.1  # seconds of work to hold beyond what Celery asked for, at the pace of the last AHEAD seconds
MOST_AHEAD = 200  # messages
GATHER = 0.01  # seconds between two round trips while there is work at hand
STALL = 0.5  # seconds in which nothing was taken: what was fetched ahead goes back

READ = "SELECT msg_id, read_ct, message::text FROM pgmq.read(%(queue)s, %(lease)s, %(room)s)"
DELETE = "SELECT pgmq.delete(%(queue)s, %(ids)s::bigint[])"
PUT_BACK = "SELECT pg_notify(%(channel)s, ''), count(*) FROM pgmq.set_vt(%(queue)s, %(ids)s::bigint[], 0)"
# For messages that nobody took: the delivery does not count (jobs/parking.py counts the others).
PUT_BACK_UNREAD = """
    WITH back AS (
        UPDATE pgmq.{table} SET vt = clock_timestamp(), read_ct = read_ct - 1 WHERE msg_id = ANY(%(ids)s::bigint[])
    )
    SELECT pg_notify(%(channel)s, '')
"""
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
        self._inbox: deque[tuple[dict[str, Any], str]] = deque()
        self._lock = threading.Condition(threading.Lock())
        self._held: dict[str, Held] = {}
        self._done: list[Held] = []
        self._returned: list[Held] = []
        self._unread: list[Held] = []
        self._strange: list[Held] = []
        self._closing = False
        self._thread: threading.Thread | None = None
        self._to_do = Doorbell()  # wakes the thread
        self.arrived = Doorbell()  # rings after messages came in
        self._poll_at = self._renew_at = self._round_at = self._taken_at = self._measured_at = 0.0  # by monotonic()
        self._ahead = 0  # messages to hold beyond the limit
        self._settled = 0  # messages since _measured_at
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
            self._return_unread({queue})
        self._to_do.ring()

    def take(self, timeout: float = 0) -> tuple[dict[str, Any], str]:
        """The next message and its queue. Raises queue.Empty after `timeout` seconds."""
        with self._lock:
            if not self._lock.wait_for(self._may_take, timeout):
                raise Empty
            self._taken_at = monotonic()
            return self._inbox.popleft()

    def _may_take(self) -> bool:
        """Whether there is a message, and Celery holds less than its limit."""
        return bool(self._inbox) and (not self.limit or len(self._held) - len(self._inbox) < self.limit)

    def done(self, tag: str) -> None:
        """Delete a message that was taken."""
        with self._lock:
            self._done += self._let_go(tag)
        self._to_do.ring()

    def put_back(self, tag: str) -> None:
        """Make a message that was taken visible to all workers."""
        with self._lock:
            self._returned += self._let_go(tag)
        self._to_do.ring()

    def _let_go(self, tag: str) -> list[Held]:
        """The message of this tag, if it is still held; Celery may have the next one instead. The lock must be held."""
        held = self._held.pop(tag, None)
        if held is None:
            return []
        self._settled += 1
        if self._may_take():
            self._lock.notify()
            self.arrived.ring()
        return [held]

    def _return_unread(self, queues: set[str]) -> None:
        """Put back what was fetched ahead from these queues. The lock must be held."""
        kept = [item for item in self._inbox if item[1] not in queues]
        for message, queue in self._inbox:
            if queue in queues:
                self._unread.append(self._held.pop(message["properties"]["delivery_tag"]))
        self._inbox = deque(kept)

    def close(self) -> None:
        """Settle everything, put back what is still held, and end the thread; takes at most GOODBYE seconds."""
        if self._thread:
            with self._lock:
                self._return_unread(self._queues)
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
                    if self._closing and not self._to_settle():
                        return
                self._rest(connection, selector)

    def _expect_more(self) -> None:
        self._maybe_more = True

    def _rest(self, connection: psycopg.Connection, selector: selectors.BaseSelector) -> None:
        """Wait until something is to be done."""
        with self._lock:
            busy = self._to_settle() or (self._maybe_more and self._room())
            hurry = not self._inbox or self._closing
        now = monotonic()
        if busy:
            sleep(0 if hurry else max(0.0, self._round_at + GATHER - now))
            timeout = 0.0
        else:
            stall_at = self._poll_at if hurry else self._taken_at + STALL
            timeout = max(0.0, min(self._poll_at, self._renew_at, stall_at) - now)
        selector.select(timeout)
        self._to_do.silence()
        connection.pgconn.consume_input()
        while connection.pgconn.notifies():
            self._expect_more()

    def _to_settle(self) -> bool:
        return bool(self._done or self._returned or self._unread)

    def _room(self) -> int:
        """How many messages may be fetched now; 0 also for so few that it is better to wait for more room."""
        if not self._queues:
            return 0
        if not self.limit:
            return FETCH
        room = self.limit + self._ahead - len(self._held)
        return room if room > 0 and room >= self._ahead / 2 else 0

    def _look_ahead(self, now: float) -> None:
        """Work out from the pace of the last jobs how many to fetch ahead; give back what nobody comes to take."""
        if now - self._measured_at >= AHEAD:
            self._ahead = min(MOST_AHEAD, int(self._settled * AHEAD / (now - self._measured_at)))
            self._settled, self._measured_at = 0, now
        if self._inbox and now >= self._taken_at + STALL:
            self._return_unread(self._queues)

    def _round(self, connection: psycopg.Connection) -> None:
        """Settle, renew and fetch, all in one round trip."""
        now = monotonic()
        self._round_at = now
        with self._lock:
            self._look_ahead(now)
            settled = [
                (DELETE, self._done),
                (PUT_BACK, self._returned),
                (PUT_BACK_UNREAD, self._unread),
                (ARCHIVE, self._strange),
            ]
            self._done, self._returned, self._unread, self._strange = [], [], [], []
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
                        sql.SQL(query).format(table=sql.Identifier(f"q_{queue}".lower())),
                        {"queue": queue, "ids": ids, "lease": LEASE, "channel": notify_channel(queue)},
                    )
                reads = [
                    (q, connection.execute(READ, {"queue": q, "lease": LEASE, "room": room})) for q in queues if room
                ]
        except psycopg.Error:
            with self._lock:
                lists = (self._done, self._returned, self._unread, self._strange)
                for messages, (_, unsettled) in zip(lists, settled, strict=True):
                    messages[:0] = unsettled
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
                self._inbox.append((message, queue))
                self._lock.notify()
        self._taken_at = monotonic()
        if rows:
            self.arrived.ring()


def one_line(error: Exception) -> str:
    """The error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
