"""The lease of jobs on Redis: what a killed worker held comes back soon, however long its jobs take.

kombu gives a message to another worker when its entry in the set of unacknowledged ones is older than the
visibility timeout, and never renews the entry: the timeout would have to outlast the longest job. Here it
is short, and a living worker renews what it holds. (On pgmq jobs/courier.py does the same;
RabbitMQ gives a message back when the connection ends.)
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from celery import bootsteps
from django.conf import settings

RENEW = 5  # seconds; a third of the visibility timeout in config/settings.py

logger = logging.getLogger(__name__)


class RedisLease(bootsteps.StartStopStep):
    """Renews the leases from a thread of the worker's main process."""

    requires = ("celery.worker.components:Pool",)

    def include_if(self, _worker: Any) -> bool:
        return settings.BROKER == "redis"

    def start(self, worker: Any) -> None:
        threading.Thread(target=self._renew_for_ever, args=[worker], name="lease", daemon=True).start()

    def stop(self, worker: Any) -> None:
        """Go on: the last jobs run until the process ends."""

    def _renew_for_ever(self, worker: Any) -> None:
        while True:
            time.sleep(RENEW)
            try:
                renew(worker)
            except worker.consumer.connection_errors as error:
                logger.warning("leases can't be renewed, trying again: %s", error)


def renew(worker: Any) -> None:
    """Set the age of everything that the worker holds to zero. Raises the connection's errors."""
    connection = getattr(worker.consumer, "connection", None)
    if connection is None:
        return
    for channel in list(connection.transport.channels):
        # Only those that are still there (XX): one that was acknowledged meanwhile must not come back.
        held = dict.fromkeys(list(channel.qos._delivered), time.time())
        if held:
            with channel.conn_or_acquire() as client:
                client.zadd(channel.unacked_index_key, held, xx=True)
