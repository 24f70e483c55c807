"""What the live feed tells, whom, and when; and the turns of the benchmark."""

from __future__ import annotations

import json
import threading
from datetime import timedelta

import pytest
from django.db import OperationalError
from django.db.models import F
from django.db.models.functions import Now

from demo import bench, dyno, live, meter, tasks
from demo.models import Bench, Job
from demo.orders import Refusal
from tests.unit.test_demo_api import refusal
from tests.unit.test_demo_dyno import STATUS
from tests.wait import wait_for

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def boiler(monkeypatch):
    """A boiler that answers; the value counts the questions."""
    questions = []
    dyno._look.cache_clear()
    monkeypatch.setenv("BOILER_STATUS", "/run/boiler/status")
    monkeypatch.setattr(dyno, "ask", lambda *_: questions.append(1) or STATUS)
    yield questions
    dyno._look.cache_clear()


def ended(job: Job) -> None:
    Job.objects.filter(pk=job.pk).update(
        state="done", pid=9, started=F("created") + timedelta(seconds=1), finished=Now() + timedelta(seconds=1)
    )


def test_a_look_tells_of_what_runs_and_of_each_end_once():
    look = live.Look()
    waiting, running, done = (Job.objects.create(kind="io", seconds=1) for _ in range(3))
    first = look.frame()
    assert (first["running"], first["ended"], first["queued"]) == ([], [], 3)
    Job.objects.filter(pk=running.pk).update(state="running", pid=8, started=Now())
    ended(done)
    frame = look.frame()
    assert frame["running"] == [[running.pk, "io", 8]]
    ((job, kind, state, pid, waited, _took),) = frame["ended"]
    assert (job, kind, state, pid, waited) == (done.pk, "io", "done", 9, 1.0)
    assert look.frame()["ended"] == []
    ended(waiting)
    assert [row[0] for row in look.frame()["ended"]] == [waiting.pk]


def test_what_ended_before_the_first_look_is_not_told():
    job = Job.objects.create(kind="io", seconds=1)
    Job.objects.filter(pk=job.pk).update(state="done", finished=Now() - timedelta(seconds=10), started=F("created"))
    assert live.Look().frame()["ended"] == []


def test_a_job_that_failed_without_a_start_is_told(client):
    look = live.Look()
    look.frame()
    job = Job.objects.create(kind="io", seconds=1, state="running")
    tasks.finish(job.pk, Job.State.FAILED, "lost")
    assert look.frame()["ended"] == [[job.pk, "io", "failed", None, None, None]]


def test_now_begins_where_the_answer_before_ended(client):
    first = client.get("/now").json()
    job = Job.objects.create(kind="io", seconds=1)
    ended(job)
    second = client.get("/now", {"after": first["after"]}).json()
    assert [row[0] for row in second["ended"]] == [job.pk]
    assert second["dyno"]["boiler"]["state"] == "running"
    assert second["requests"] > first["requests"]
    assert client.get("/now", {"after": second["after"] + 10}).json()["ended"] == []


@pytest.mark.parametrize("after", ["", "soon", "nan", "-1", "1e300", "inf"])
def test_now_refuses_what_is_no_time(client, after):
    assert "after must be" in refusal(client.get("/now", {"after": after}), 400)


def test_without_gevent_there_is_no_stream(client):
    assert "ask for /now" in refusal(client.get("/events"), 501)


def test_streams_leave_room_for_requests(client, settings, monkeypatch):
    settings.GREENLETS = True
    monkeypatch.setenv("WEB_CONNECTIONS", "300")
    monkeypatch.setattr(live.Feed, "watching", 200)
    assert "Too many are watching" in refusal(client.get("/events"), 503)


class Watching:
    """Visitors of a feed that looks at nothing real, each in a thread."""

    def __init__(self, monkeypatch, number: int) -> None:
        self.looks = 0
        self.fault: Exception | None = None
        monkeypatch.setattr(live.Look, "frame", lambda _: self._frame())
        monkeypatch.setattr(live, "TICK", 0.01)
        monkeypatch.setattr(live, "PULSE", 0.01)
        monkeypatch.setattr(live.connections, "close_all", lambda: None)
        self.feed = live.Feed()
        self.seen: list[list[bytes]] = [[] for _ in range(number)]
        self.threads = [threading.Thread(target=self._watch, args=[seen], daemon=True) for seen in self.seen]
        for thread in self.threads:
            thread.start()

    def _frame(self) -> live.Frame:
        self.looks += 1
        if self.fault:
            raise self.fault
        return {"running": [], "ended": [], "clock": self.looks}

    def _watch(self, seen: list[bytes]) -> None:
        for data in self.feed.watch():
            seen.append(data)

    def end(self) -> None:
        """Close the feed, and wait until its thread looks no more: soon there is a real database again."""
        self.feed.close()
        wait_for(lambda: not self.feed._producing, "the feed has ended")

    def everyone_saw(self, text: bytes) -> bool:
        return all(text in b"".join(seen) for seen in self.seen)


def test_all_visitors_get_what_one_look_found(monkeypatch):
    watching = Watching(monkeypatch, 20)
    wait_for(lambda: watching.everyone_saw(b'"clock":20'), "everyone saw the 20th look")
    # 20 visitors that each looked for themselves would have looked 400 times.
    assert watching.looks < 200
    watching.end()
    for thread in watching.threads:
        thread.join(10)
        assert not thread.is_alive()


def test_the_feed_rests_when_nobody_watches_and_goes_on_for_the_next(monkeypatch):
    watching = Watching(monkeypatch, 0)
    first = watching.feed.watch()
    assert next(first).startswith(b"retry: ")
    assert next(first).startswith(b"data: ")
    first.close()
    wait_for(lambda: not watching.feed._producing, "the feed rests")
    looks = watching.looks
    second = watching.feed.watch()
    next(second)
    assert json.loads(next(second).split(b"data: ")[1])["clock"] > looks
    watching.end()
    assert list(second) in ([], [b""])


def test_a_database_that_is_out_of_reach_is_told_and_asked_again(monkeypatch):
    watching = Watching(monkeypatch, 1)
    wait_for(lambda: watching.everyone_saw(b'"clock"'), "the visitor sees something")
    watching.fault = OperationalError("gone")
    looks = watching.looks
    wait_for(lambda: watching.looks > looks + 3, "it is asked again and again")
    watching.fault = None
    wait_for(lambda: watching.everyone_saw(b"The database can't be reached."), "the visitor is told")
    watching.end()


def test_requests_are_counted_once_each():
    before = meter.requests()
    for _ in range(3):
        meter.count_request()
    assert meter.requests() == before + 3


def test_one_benchmark_at_a_time_and_a_pause_after_it(client, monkeypatch):
    course = client.post("/bench")
    assert course.status_code == 201
    assert [stage["stage"] for stage in course.json()["stages"]] == ["hello", "io", "cpu", "storm"]
    assert course.json()["seconds"] * 4 == 20
    second = client.post("/bench")
    assert "is running" in refusal(second, 429)
    assert 75 <= int(second.headers["Retry-After"]) <= 80
    Bench.objects.update(began=Now() - timedelta(seconds=30))
    assert "ran a moment ago" in refusal(client.post("/bench"), 429)
    Bench.objects.update(began=Now() - timedelta(seconds=81))
    assert client.post("/bench").status_code == 201
    assert Bench.objects.count() == 1
    Bench.objects.update(began=Now() - timedelta(seconds=21))
    monkeypatch.setenv("BENCH_PAUSE", "0")
    assert client.post("/bench").status_code == 201


def test_no_benchmark_begins_behind_a_queue():
    Job.objects.bulk_create(Job(kind="sleep", seconds=0) for _ in range(11))
    with pytest.raises(Refusal, match="Jobs are waiting"):
        bench.begin()
    assert not Bench.objects.exists()
