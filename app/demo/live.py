"""What visitors see live: one feed in each gunicorn worker, however many of them watch.

While anybody watches, a feed looks at the jobs a few times a second and at the boiler's status once, and hands the
same bytes to all. When nobody does, it ends.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from django.db import connection, connections

from config.stopping import at_stop

from . import dyno, meter
from .orders import UNREACHABLE

# All times are seconds.
TICK = 0.2  # between two looks at the jobs; longer with many visitors, see SENDS
SENDS = 500  # frames that one worker sends a second, to all visitors together
PULSE = 1.0  # between two looks at the queue's length and at the dyno
OVERLAP = 0.5  # a job's end is written with the time at which its transaction began, and is seen after its commit
MOST = 5000  # ended jobs in one look; the others come in the next
KEPT = 32  # frames that a slow visitor may be behind

CHANGES = """
    SELECT id, kind, state, pid,
        extract(epoch FROM started - created)::float8, extract(epoch FROM finished - started)::float8,
        extract(epoch FROM finished)::float8
    FROM (
        (SELECT * FROM demo_job WHERE state = 'running' ORDER BY id LIMIT 200)
        UNION ALL
        (SELECT * FROM demo_job WHERE finished > to_timestamp(%s) ORDER BY finished LIMIT %s)
    ) AS changed
"""
QUEUED = "SELECT count(*) FROM (SELECT FROM demo_job WHERE state = 'queued' LIMIT 100000) AS queued"

logger = logging.getLogger(__name__)

Frame = dict[str, Any]


class Look:
    """One visitor's, or one feed's, view of what has changed since its last look."""

    def __init__(self, after: float | None = None) -> None:
        """Look at jobs that ended after that time, by the database's clock in seconds; from now on if None."""
        self._after = after
        self._told: deque[tuple[float, int]] = deque()
        self._known: set[int] = set()
        self._pulse_at = 0.0

    def frame(self) -> Frame:
        """What has changed.

        `running`: id, kind, pid of each job that runs; `ended`: id, kind, state, pid, waited, took of each that ended;
        about once a second also `queued`, `requests` (since the start), `clock` and `dyno` (None if the boiler does
        not answer). `after` is where the next look begins. Raises what UNREACHABLE has.
        """
        now = time.monotonic()
        with connection.cursor() as cursor:
            if self._after is None:
                cursor.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
                (self._after,) = cursor.fetchone()
            cursor.execute(CHANGES, [self._after - OVERLAP, MOST])
            rows = cursor.fetchall()
            frame: Frame = {
                "running": [[row[0], row[1], row[3]] for row in rows if row[2] == "running"],
                "ended": [self._tell(row) for row in rows if row[6] is not None and row[0] not in self._known],
            }
            if now >= self._pulse_at:
                self._pulse_at = now + PULSE
                cursor.execute(QUEUED)
                (frame["queued"],) = cursor.fetchone()
                frame |= {"clock": round(now, 3), "requests": meter.requests(), "dyno": look_at_dyno()}
        frame["after"] = self._after
        self._forget()
        return frame

    def _tell(self, row: tuple[Any, ...]) -> list[Any]:
        job, kind, state, pid, waited, took, finished = row
        self._after = max(self._after or 0.0, finished)
        self._told.append((finished, job))
        self._known.add(job)
        return [job, kind, state, pid, waited and round(waited, 4), took and round(took, 4)]

    def _forget(self) -> None:
        """Forget the jobs that no look will find again."""
        while self._told and self._told[0][0] < (self._after or 0.0) - 2 * OVERLAP:
            self._known.discard(self._told.popleft()[1])


def look_at_dyno() -> dict[str, Any] | None:
    """The boiler's status, or None if it doesn't answer."""
    try:
        return dyno.look()
    except OSError:
        return None


def as_event(frame: Frame) -> bytes:
    """The frame as a server-sent event."""
    return f"data: {json.dumps(frame, separators=(',', ':'))}\n\n".encode()


class Feed:
    """Looks on behalf of all visitors of this process and hands out the frames."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._frames: deque[tuple[int, bytes]] = deque(maxlen=KEPT)
        self._number = 0
        self._watching = 0
        self._producing = False
        self._closing = False

    @property
    def watching(self) -> int:
        """How many visitors watch."""
        return self._watching

    def watch(self) -> Iterator[bytes]:
        """Server-sent events for one visitor, until the visitor leaves or the feed is closed.

        One that falls more than KEPT frames behind misses some: the page asks after jobs that it hears nothing of.
        """
        with self._changed:
            self._watching += 1
            if not self._producing:
                self._producing = True
                threading.Thread(target=self._produce, name="feed", daemon=True).start()
            seen = self._number
        try:
            # When to come back after a stop, in ms: not all at once.
            yield f"retry: {random.randrange(1000, 3000)}\n\n".encode()  # noqa: S311
            while not self._closing:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing or self._number > seen)  # noqa: B023 (called at once)
                    frames = [frame for number, frame in self._frames if number > seen]
                    seen = self._number
                yield b"".join(frames)
        finally:
            with self._changed:
                self._watching -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """End all streams, now and from now on: the process is about to stop."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def _produce(self) -> None:
        """Look again and again as long as anybody watches; hand out what is new."""
        look, running = Look(), None
        while True:
            began = time.monotonic()
            frame = self._look(look)
            is_news = frame.get("ended") or "clock" in frame or frame.get("running") != running
            running = frame.get("running")
            with self._changed:
                if self._closing or not self._watching:
                    self._producing = False
                    return
                if is_news:
                    self._number += 1
                    self._frames.append((self._number, as_event(frame)))
                    self._changed.notify_all()
                pause = max(TICK, self._watching / SENDS) - (time.monotonic() - began)
            time.sleep(max(pause, TICK / 4))

    def _look(self, look: Look) -> Frame:
        try:
            return look.frame()
        except UNREACHABLE as error:
            logger.warning("The live feed: %s", error)
            time.sleep(PULSE)
            return {"trouble": "The database can't be reached."}
        finally:
            connections.close_all()


feed = Feed()
at_stop.append(feed.close)
