"""What becomes of a job: its states, its failure, its delivery again, and its end."""

from __future__ import annotations

import importlib
import os
import time
from datetime import timedelta

import pytest
from celery.exceptions import Reject
from django.apps import apps
from django.db import InterfaceError, OperationalError
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from demo import tasks
from demo.models import Job

pytestmark = pytest.mark.django_db


@pytest.fixture
def job() -> Job:
    return Job.objects.create(kind="sleep", seconds=0)


@pytest.mark.parametrize("kind", Job.Kind.values)
def test_a_job_ends_done_with_its_process_and_its_times(kind):
    job = Job.objects.create(kind=kind, seconds=0.05)
    tasks.run(job.pk, kind, 0.05)
    job.refresh_from_db()
    assert (job.state, job.pid, job.error) == ("done", os.getpid(), "")
    assert job.created < job.started < job.finished
    assert job.took >= timedelta(seconds=0.05)


def test_a_job_is_seen_running_while_it_works(job, monkeypatch):
    seen = []
    monkeypatch.setitem(tasks.WORK, "sleep", lambda _: seen.append(Job.objects.get(pk=job.pk)))
    tasks.run(job.pk, "sleep", 0)
    assert [(one.state, one.pid, one.finished) for one in seen] == [("running", os.getpid(), None)]


def test_a_job_takes_two_statements(job, django_assert_num_queries):
    with django_assert_num_queries(2) as captured:
        tasks.run(job.pk, "sleep", 0)
    assert [query["sql"].split()[0] for query in captured.captured_queries] == ["UPDATE", "UPDATE"]


def test_a_cpu_job_burns_processor_time():
    before = time.thread_time()
    tasks.burn(0.05)
    assert 0.05 <= time.thread_time() - before < 0.5


def test_a_job_that_fails_says_why_in_one_line(job, monkeypatch):
    def fail(_seconds):
        raise ValueError("the pan\nis \0 on fire" + "!" * 500)

    monkeypatch.setitem(tasks.WORK, "sleep", fail)
    with pytest.raises(ValueError, match="the pan"):
        tasks.run(job.pk, "sleep", 0)
    job.refresh_from_db()
    assert (job.state, job.pid) == ("failed", os.getpid())
    assert job.error.startswith("ValueError: the pan is on fire!")
    assert len(job.error) == 200
    assert job.finished is not None


@pytest.mark.parametrize("state", ["done", "failed"])
def test_a_job_delivered_again_after_its_end_is_not_run_again(job, monkeypatch, state):
    Job.objects.update(state=state, pid=1, finished=timezone.now())
    monkeypatch.setitem(tasks.WORK, "sleep", lambda _: pytest.fail("run again"))
    tasks.run(job.pk, "sleep", 0)
    job.refresh_from_db()
    assert (job.state, job.pid) == (state, 1)


def test_a_job_that_a_killed_worker_left_running_is_run_again(job):
    Job.objects.update(state="running", pid=1, started=timezone.now())
    tasks.run(job.pk, "sleep", 0)
    job.refresh_from_db()
    assert (job.state, job.pid) == ("done", os.getpid())


def test_the_first_end_of_a_job_delivered_twice_at_once_counts(job, monkeypatch):
    def other_worker(_seconds):
        Job.objects.update(state="done", finished=timezone.now())
        raise ValueError("too late")

    monkeypatch.setitem(tasks.WORK, "sleep", other_worker)
    with pytest.raises(ValueError, match="too late"):
        tasks.run(job.pk, "sleep", 0)
    job.refresh_from_db()
    assert (job.state, job.error) == ("done", "")


def test_a_job_that_was_cleared_away_is_nothing_to_run():
    tasks.run(2**62, "sleep", 0)


@pytest.mark.parametrize("error", [OperationalError("connection refused"), InterfaceError("closed")])
def test_a_job_goes_back_on_the_queue_when_its_database_is_out_of_reach(job, monkeypatch, error):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(tasks.time, "sleep", lambda _: None)
    monkeypatch.setattr(tasks.connection, "close", lambda: None)
    with monkeypatch.context() as outage:
        outage.setattr(tasks.connection, "cursor", fail)
        with pytest.raises(Reject) as rejection:
            tasks.run(job.pk, "sleep", 0)
    assert rejection.value.requeue
    tasks.run(job.pk, "sleep", 0)
    job.refresh_from_db()
    assert job.state == "done"


def test_pruning_takes_the_jobs_that_finished_long_ago_and_no_others(monkeypatch):
    monkeypatch.setenv("JOBS_KEPT", "100")
    now = timezone.now()
    ages = {"old": timedelta(seconds=110), "fresh": timedelta(seconds=90)}
    for state in ("done", "failed"):
        for age in ages.values():
            Job.objects.create(kind="sleep", seconds=0, state=state, finished=now - age)
    for state in ("queued", "running"):
        Job.objects.create(kind="sleep", seconds=0, state=state, created=now - timedelta(days=1))
    assert tasks.prune() == 2
    assert sorted(Job.objects.values_list("state", flat=True)) == ["done", "failed", "queued", "running"]
    assert not Job.objects.filter(finished__lt=now - timedelta(seconds=100)).exists()


def test_pruning_is_scheduled_once_and_every_minute_however_often_it_is_migrated():
    migration = importlib.import_module("demo.migrations.0002_schedule")
    migration.schedule(apps, None)
    migration.schedule(apps, None)
    entry = PeriodicTask.objects.get(task=tasks.prune.name)
    assert entry.enabled
    assert entry.schedule.remaining_estimate(timezone.now()) <= timedelta(minutes=1)
    migration.unschedule(apps, None)
    assert not PeriodicTask.objects.filter(task=tasks.prune.name).exists()
