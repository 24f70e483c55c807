"""Counts requests over all of gunicorn's workers: in memory that they share since the master imported this."""

from __future__ import annotations

import mmap
import os
import struct
from typing import Any

from django.core.signals import request_started

NUMBER = struct.Struct("Q")
SLOTS = mmap.PAGESIZE // NUMBER.size  # one for each worker: two that count in the same one may lose a count

_shared = mmap.mmap(-1, mmap.PAGESIZE)


def count_request(**_: Any) -> None:
    """Add one to this process's number."""
    at = os.getpid() % SLOTS * NUMBER.size
    NUMBER.pack_into(_shared, at, NUMBER.unpack_from(_shared, at)[0] + 1)


def requests() -> int:
    """How many requests there were since the start; /healthz and static files, which Django does not see, left out."""
    return sum(number for (number,) in NUMBER.iter_unpack(_shared))


request_started.connect(count_request)
