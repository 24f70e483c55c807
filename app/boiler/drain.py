"""Who gets which signal, and when: the one place that decides it.

Facts behind the choices (measured): a SIGTERM to the whole group kills Celery's pool children in
mid-job, so only an inner process's main process gets it; the platform's SIGKILL can't be put off, so
everything of the dyno is gone before the grace is over.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A signal to send, `after` seconds from the moment the stop was asked for."""

    after: float
    signal: signal.Signals
    whole_group: bool


def margin(grace: float) -> float:
    """The last seconds of the grace, kept for what must happen after the inner processes: at most 3."""
    return min(3.0, grace / 5)


def last_call(grace: float) -> float:
    """Seconds into the grace when what still runs is put back: 5 before its end, or a third of a short one."""
    return grace - min(5.0, grace / 3)


def stop_steps(grace: float, *, through_shell: bool) -> list[Step]:
    """How an inner process is stopped.

    SIGTERM asks it to finish; SIGQUIT says that it must leave now, which makes gunicorn drop what is in
    flight and a Celery worker put its jobs back (jobs/worker.py); SIGKILL takes what is left of its group.
    A shell dies of SIGTERM without passing it on, so with one in between the whole group is signalled, and
    the stop ends when the whole group is gone.
    """
    return [
        Step(0, signal.SIGTERM, whole_group=through_shell),
        Step(last_call(grace), signal.SIGQUIT, whole_group=through_shell),
        Step(grace - margin(grace), signal.SIGKILL, whole_group=True),
    ]


def database_steps(grace: float, elapsed: float) -> list[Step]:
    """How the embedded PostgreSQL is stopped, `elapsed` seconds into the grace, after all that use it.

    SIGINT is its fast shutdown: clients are cut off and everything is on disk. SIGTERM would wait for
    clients, SIGKILL leaves recovery to the next start (PostgreSQL manual, "Shutting Down the Server").
    """
    last = max(0.2, grace - margin(grace) / 4 - elapsed)
    return [Step(0, signal.SIGINT, whole_group=False), Step(last, signal.SIGKILL, whole_group=True)]
