"""The Celery app. Its settings are the CELERY_… names in config/settings.py."""

from __future__ import annotations

import gc
import os
from typing import Any

from celery import Celery, signals
from celery.backends.base import DisabledBackend
from kombu.transport import TRANSPORT_ALIASES

from boiler.titles import set_title

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
TRANSPORT_ALIASES["pgmq"] = "jobs.transport:Transport"
# It keeps nothing, so one will do: Celery makes one for each greenlet that sends a job, which takes 0.6 ms.
DisabledBackend.thread_safe = True

app = Celery("config", task_cls="jobs.queue:TransactionalTask")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
app.steps["worker"].update({"jobs.worker:Drain", "jobs.lease:RedisLease"})


@signals.setup_logging.connect
def leave_logging_to_django(**_: Any) -> None:
    """Being connected is all: Celery configures no logging then, and settings.LOGGING stands."""


# Each of these signals comes after Celery has set a title of its own.
@signals.worker_init.connect
@signals.worker_ready.connect
def title_worker(**_: Any) -> None:
    """`worker: celery main`."""
    set_title("celery main", default="worker")


@signals.worker_init.connect
def share_memory(**_: Any) -> None:
    """Keep the garbage collector of each pool child from writing to all that it shares with the others."""
    gc.freeze()


@signals.worker_process_init.connect
def title_pool_child(**_: Any) -> None:
    """`worker: celery pool child`."""
    set_title("celery pool child", default="worker")


@signals.beat_init.connect
def title_beat(**_: Any) -> None:
    """`beat: celery beat`."""
    set_title("celery beat", default="beat")


@signals.task_prerun.connect
def heal_connections(**_: Any) -> None:
    """Let a job start on a new database connection if the kept one is gone."""
    from jobs.database import close_broken  # noqa: PLC0415 (needs Django's settings)

    close_broken()
