"""How a Celery worker ends: what can finish finishes, what can't goes back to the queue, nothing waits.

The boiler's signals (boiler/drain.py) mean for a worker:

- SIGTERM, however often: take no new jobs, finish the running ones, and leave as soon as the last one
  is acknowledged. Celery's own way out takes two seconds more (measured: its pool's threads sleep).
- SIGQUIT, when time is nearly up: put back what still runs, and leave.
"""

from __future__ import annotations

import _thread
import logging
import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any

from celery import bootsteps, signals
from celery.worker import state
from celery.worker.request import Request

from .doorbell import Doorbell

NICE = 5  # of pool children: against a web worker's one, each gets a third of a processor that all of them want
INTERVAL = 0.02  # seconds between two looks at the running jobs; only while the worker ends

logger = logging.getLogger(__name__)


@signals.worker_process_init.connect
def leave_stopping_to_the_parent(**_: Any) -> None:
    """Keep a pool child at its job when SIGTERM is sent to every process, as Heroku does.

    Celery resets the signal in its pool children, which then die of it in mid-job (measured).
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)  # the parent's


@signals.worker_process_init.connect
def let_the_web_go_first(**_: Any) -> None:
    """Have jobs that compute wait for requests, which are short, and not the other way round."""
    os.nice(NICE)


class KillableRequest(Request):
    """A request whose job ends where Celery cancels it, as it does with running jobs that it lost the broker of.

    A pool child ignores the SIGTERM that Celery would send: RabbitMQ's next worker would run the job beside it.
    """

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """Kill the pool child that runs the job; another takes its place."""
        super().cancel(pool, signal or "KILL", emit_retry)


class Drain(bootsteps.StartStopStep):
    """Stopped after the consumer, so that no job comes any more, and before the pool."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._leaving = threading.Lock()

    def start(self, worker: Any) -> None:
        """Take SIGQUIT over from Celery, whose cold shutdown loses what gevent runs (measured)."""

        def put_back_now(_signal: int, _frame: Any) -> None:
            # threading.Thread would wait for the thread's start, which gevent allows no signal handler, and for a
            # lock that the interrupted code may hold.
            _thread.start_new_thread(self._leave, (worker,))

        signal.signal(signal.SIGQUIT, put_back_now)
        if worker.hub:  # it waits for up to 1.4 s before it looks whether a signal came
            bell = Doorbell()
            signal.set_wakeup_fd(bell.writer, warn_on_full_buffer=False)
            worker.hub.add_reader(bell, bell.silence)

    def stop(self, worker: Any) -> None:
        """Leave when the jobs that are still here are settled; Celery's pool goes on with them meanwhile."""
        requests = list({*state.reserved_requests, *state.active_requests})
        threading.Thread(target=self._wait_and_leave, args=[worker, requests], daemon=True).start()

    def _wait_and_leave(self, worker: Any, requests: list[Request]) -> None:
        while not all(is_settled(request) for request in requests):
            time.sleep(INTERVAL)
        self._leave(worker)

    def _leave(self, worker: Any) -> None:
        """Stop what still runs, put it back, and end this process and its children."""
        if not self._leaving.acquire(blocking=False):
            return
        children = pool_children(worker)
        # Not killed yet: Celery would see its children lost and put the same jobs back a second time.
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            put_back(worker)
        except Exception as error:  # noqa: BLE001 (whatever the drivers raise: the lease puts them back)
            logger.error("jobs that were running come back late: %s", error)
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        logging.shutdown()
        os._exit(0)


def put_back(worker: Any) -> None:
    """Give the queue back what still runs. Raises what the drivers of the broker and the database raise."""
    running = [request.id for request in state.active_requests if request.task.acks_late]
    connection = worker.consumer.connection
    if connection is not None:
        connection.close()  # kombu puts back what is not acknowledged; RabbitMQ does it by itself
    if running:
        from .parking import uncount_starts  # noqa: PLC0415 (models, which need the apps to be loaded)

        uncount_starts(running)


def is_settled(request: Request) -> bool:
    """Whether a job has ended, and the queue knows it.

    The message says so: the request itself counts as acknowledged as soon as that stands in the event
    loop's list of things to do.
    """
    return request.message.acknowledged and request not in state.reserved_requests


def pool_children(worker: Any) -> list[int]:
    """The pids of a prefork pool; other pools have none."""
    pool = getattr(worker.pool, "_pool", None)
    return [process.pid for process in getattr(pool, "_pool", []) if process.pid]
