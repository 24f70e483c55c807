"""The mini benchmark: its course, and who may run it when.

The load comes from the visitor's browser, or from `make bench`; the same limits hold for its jobs as for all others.
Here is what the stages are, and that they don't overlap with those of somebody else.
"""

from __future__ import annotations

from typing import Any

from django.db import connection, transaction

from boiler.settings import get

from .models import Bench, Job
from .orders import Refusal

# Each stage takes so many seconds. The jobs that wait and that compute are sent in one call each, so few that two
# children of Celery's do them in time. In the storm, calls with one job each come for the first `sends` seconds, over
# as many connections as there are; the rest is for the worker to catch up. It is the last, because it leaves jobs.
STAGE = 5
COURSE: tuple[dict[str, Any], ...] = (
    {"stage": "hello", "path": "/hello"},
    {"stage": "io", "order": {"kind": Job.Kind.IO, "seconds": 0.1, "count": 80}},
    {"stage": "cpu", "order": {"kind": Job.Kind.CPU, "seconds": 0.05, "count": 60}},
    {"stage": "storm", "order": {"kind": Job.Kind.SLEEP, "seconds": 0}, "sends": 3},
)
CONNECTIONS = 5  # a browser opens six to one server; one of them is the live feed's
MOST_WAITING = 10  # jobs on the queue at the beginning: more would be measured as well
# The advisory lock of those who want to begin: any number that nothing else here uses.
TURN = 0x0DE302


def begin() -> dict[str, Any]:
    """Let a benchmark begin; returns its course.

    Raises Refusal while another one runs, for BENCH_PAUSE s after it, and while there is a queue.
    """
    takes = STAGE * len(COURSE)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [TURN])
        cursor.execute("SELECT extract(epoch FROM clock_timestamp() - max(began))::float8 FROM demo_bench")
        (ago,) = cursor.fetchone()
        if ago is not None and (left := takes + get("BENCH_PAUSE") - ago) > 0:
            which = "is running" if ago < takes else "ran a moment ago"
            raise Refusal(429, f"A benchmark {which}: the next may begin in {left:.0f} s.", max(1, round(left)))
        waiting = Job.objects.filter(state=Job.State.QUEUED)[: MOST_WAITING + 1].count()
        if waiting > MOST_WAITING:
            raise Refusal(429, "Jobs are waiting: a benchmark begins when they are done.", 5)
        Bench.objects.all().delete()
        Bench.objects.create()
    return {"seconds": STAGE, "connections": CONNECTIONS, "stages": COURSE}
