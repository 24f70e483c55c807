"""Beat with one leader: each scheduled job is sent once, whatever happens to the beats."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.jobs import BEAT, Process, Queue, call
from tests.wait import wait_for

NOTE = "tests.jobs_tasks.note"


@pytest.fixture
def schedule(queue: Queue) -> Callable[..., None]:
    """`schedule("name", seconds=1)` or `schedule("name", crontab="* * * * *")`; `last_run` in seconds ago."""

    def add(name: str, seconds: int = 0, crontab: str = "", last_run: float | None = None) -> None:
        minute, hour, *_ = crontab.split() or [""] * 5
        code = f"""
from datetime import timedelta
from django.utils.timezone import now
from django_celery_beat.models import *
every = dict(interval=IntervalSchedule.objects.get_or_create(every={seconds}, period="seconds")[0]) if {seconds} else (
    dict(crontab=CrontabSchedule.objects.create(minute={minute!r}, hour={hour!r})))
last = None if {last_run} is None else now() - timedelta(seconds={last_run or 0})
PeriodicTask.objects.create(name={name!r}, task={NOTE!r}, args='["", {json.dumps(name)}]', last_run_at=last, **every)
"""
        done = call(queue, code)
        assert done.returncode == 0, done.stderr

    return add


def sent(queue: Queue) -> list[tuple[str, float]]:
    """Names and times of the scheduled jobs on the queue, oldest first."""
    return queue.rows(
        "SELECT (message->>'body')::jsonb #>> '{0,1}', extract(epoch FROM enqueued_at)::float "
        "FROM pgmq.q_celery ORDER BY msg_id"
    )


def leaders(*beats: Process) -> list[Process]:
    return [beat for beat in beats if beat.popen.poll() is None and "leading" in beat.log()]


def counted(queue: Queue) -> tuple[int, int]:
    """How many jobs the schedule has counted, and how many are on the queue, both at one moment."""
    return queue.rows(
        "SELECT coalesce(sum(total_run_count), 0), (SELECT count(*) FROM pgmq.q_celery) "
        "FROM django_celery_beat_periodictask"
    )[0]


def test_of_two_beats_one_sends(queue, start, schedule):
    schedule("every second", seconds=1, last_run=0)
    one, other = start(*BEAT), start(*BEAT)
    wait_for(lambda: len(sent(queue)) >= 6, "six jobs")
    assert len(leaders(one, other)) == 1
    times = [at for _, at in sent(queue)]
    assert all(later - earlier > 0.8 for earlier, later in pairwise(times))
    by_schedule, on_queue = counted(queue)
    assert by_schedule == on_queue


def test_another_beat_leads_within_fifteen_seconds_of_the_leader_s_sigkill(queue, start, schedule):
    schedule("every second", seconds=1, last_run=0)
    first = start(*BEAT).says("leading")
    second = start(*BEAT)
    wait_for(lambda: len(sent(queue)) >= 2, "two jobs")
    first.kill()
    before = len(sent(queue))
    second.says("leading", 15)
    wait_for(lambda: len(sent(queue)) > before + 1, "more jobs")
    times = [at for _, at in sent(queue)]
    assert all(later - earlier > 0.8 for earlier, later in pairwise(times))
    by_schedule, on_queue = counted(queue)
    assert by_schedule == on_queue


@pytest.mark.parametrize("how", [{"seconds": 3600}, {"crontab": "0 3 * * *"}])
def test_what_was_missed_while_asleep_is_sent_once_on_waking(how, queue, start, schedule):
    schedule("missed", **how, last_run=3 * 86400)
    start(*BEAT).says("sending the scheduled job missed")
    schedule("next", seconds=2, last_run=0)
    wait_for(lambda: ("next", 2) in [(name, 2) for name, _ in sent(queue)], "a job that comes later")
    assert [name for name, _ in sent(queue)].count("missed") == 1


def test_a_beat_that_restarts_more_often_than_the_interval_still_sends(queue, start, schedule):
    schedule("every eight seconds", seconds=8)
    began = time.monotonic()
    while not sent(queue) and time.monotonic() - began < 30:
        beat = start(*BEAT).says("leading")
        at = time.monotonic()
        wait_for(lambda at=at: sent(queue) or time.monotonic() - at > 1, "a job, or a second of leading")
        beat.kill()
    assert sent(queue)
    assert time.monotonic() - began < 20


def test_a_beat_killed_at_any_moment_neither_loses_nor_repeats_a_job(queue, start, schedule):
    for number in range(5):
        schedule(f"every second {number}", seconds=1, last_run=0)
    began = time.monotonic()
    for wait in (0.1, 0.35, 0.6, 0.85, 1.1):
        beat = start(*BEAT).says("leading")
        at = time.monotonic()
        wait_for(lambda at=at, wait=wait: time.monotonic() - at >= wait, "the moment")
        beat.kill()
    by_schedule, on_queue = counted(queue)
    assert by_schedule == on_queue > 0
    assert on_queue <= 5 * (time.monotonic() - began + 1)


def test_a_suspended_leader_sends_nothing_when_it_goes_on_beside_a_new_one(queue, start, schedule):
    schedule("every second", seconds=1, last_run=0)
    first = start(*BEAT).says("leading")
    second = start(*BEAT)
    wait_for(lambda: sent(queue), "a job")
    os.kill(first.pid, signal.SIGSTOP)
    queue.rows(
        "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
        "WHERE locktype = 'advisory' AND granted AND datname = current_database()"
    )
    second.says("leading")
    os.kill(first.pid, signal.SIGCONT)
    before = len(sent(queue))
    wait_for(lambda: len(sent(queue)) > before + 3, "more jobs")
    times = [at for _, at in sent(queue)]
    assert all(later - earlier > 0.8 for earlier, later in pairwise(times))


def test_a_beat_outlives_a_restart_of_postgresql(queue, start, schedule):
    schedule("every second", seconds=1, last_run=0)
    beat = start(*BEAT)
    wait_for(lambda: sent(queue), "a job")
    queue.cut(3)
    before = len(sent(queue))
    wait_for(lambda: len(sent(queue)) > before + 1, "more jobs", 10)
    assert beat.popen.poll() is None
    assert "Traceback" not in beat.log()


def test_beat_ends_at_once_when_told_to_and_another_takes_over(queue, start, schedule):
    first = start(*BEAT).says("leading")
    second = start(*BEAT)
    assert first.titles() == ["beat: celery beat"]
    assert first.stop(4) == 0  # less than the 5 s between two looks at the schedule
    second.says("leading", 15)


def test_a_beat_takes_two_connections(queue, start, schedule):
    schedule("every second", seconds=1, last_run=0)
    start(*BEAT)
    wait_for(lambda: len(sent(queue)) > 1, "two jobs")
    assert queue.connections() == {"beat": 2}


def test_a_job_that_can_t_be_sent_does_not_hold_up_the_others(queue, start, schedule):
    schedule("bad", seconds=1, last_run=10)
    schedule("good", seconds=1, last_run=0)
    queue.rows(
        """UPDATE django_celery_beat_periodictask SET priority = 5, queue = repeat('x', 60) WHERE name = 'bad'"""
    )
    beat = start(*BEAT)
    wait_for(lambda: [name for name, _ in sent(queue)].count("good") > 2, "the good jobs")
    assert beat.popen.poll() is None


def test_a_job_put_into_the_schedule_right_after_beat_s_start_is_sent(queue, start, schedule):
    beat = start(*BEAT)
    wait_for(lambda: leaders(beat), "beat leads")
    schedule("late", seconds=3600, last_run=7200)
    wait_for(lambda: sent(queue), "the job that is due", 60)
