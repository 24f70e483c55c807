"""The Celery worker on pgmq: what it holds, what it loses, and what it says in `ps`."""

from __future__ import annotations

import os
import signal
import statistics
import time

import psycopg
import pytest

from tests.jobs import Diary, Queue, call
from tests.wait import wait_for


def send(queue: Queue, diary: Diary, *names: str, seconds: float = 0, task: str = "note") -> None:
    calls = [(str(diary.file), name, seconds) if task == "note" else (str(diary.file), name) for name in names]
    done = call(queue, f"from jobs.queue import enqueue; enqueue(tasks.{task}, {calls!r})")
    assert done.returncode == 0, done.stderr


def test_a_worker_and_its_children_are_told_apart_by_their_titles(start_worker):
    worker = start_worker(WORKER_CONCURRENCY="2")
    wait_for(lambda: worker.titles().count("worker: celery pool child") == 2, "two titled children")
    assert sorted(worker.titles()) == ["worker: celery main"] + ["worker: celery pool child"] * 2
    named = start_worker(BOILER_PROCESS="mailer", WORKER_CONCURRENCY="1")
    wait_for(
        lambda: sorted(named.titles()) == ["mailer: celery main", "mailer: celery pool child"], "the boiler's name"
    )


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_every_pool_does_every_job_once(pool, queue, start_worker, diary):
    names = [str(number) for number in range(60)]
    send(queue, diary, *names)
    worker = start_worker(pool)
    wait_for(lambda: len(diary.entries("end")) == 60 and queue.size() == 0, "all jobs done and acknowledged")
    assert diary.names("start") == dict.fromkeys(names, 1)
    assert worker.stop() == 0
    assert "Traceback" not in worker.log()


def test_what_a_worker_fetched_ahead_goes_to_another_while_its_own_job_is_long(queue, start_worker, diary):
    send(queue, diary, *(f"short {number}" for number in range(300)))
    send(queue, diary, "long", seconds=60)
    send(queue, diary, *(f"late {number}" for number in range(40)))
    start_worker(WORKER_CONCURRENCY="1")
    wait_for(lambda: diary.names("start")["long"], "the long job runs")
    start_worker(WORKER_CONCURRENCY="1")
    # Before the lease of what the first worker holds could run out: it renews it.
    wait_for(lambda: sum(name.startswith("late") for name in diary.names("end")) == 40, "the others are done")
    left = "SELECT read_ct FROM pgmq.q_celery"
    wait_for(lambda: queue.rows(left) == [(1,)], "the long job alone is left, fetched once")
    assert diary.names("end")["long"] == 0


def test_an_idle_worker_starts_a_job_within_ten_milliseconds_of_its_commit(queue, start_worker, diary):
    start_worker(WORKER_CONCURRENCY="1")
    code = f"""
import time
for number in range(20):
    time.sleep(0.1)
    tasks.note.delay({str(diary.file)!r}, str(time.time()))
"""
    assert call(queue, code).returncode == 0
    wait_for(lambda: len(diary.entries("end")) == 20, "all jobs done")
    delays = [entry["at"] - float(entry["name"]) for entry in diary.entries("start")]
    assert min(delays) < 0.010 + 0.005  # the name is older than the commit by the publishing
    assert statistics.median(delays) < 0.2  # it is told: its own look comes once a second


def test_an_idle_worker_asks_about_once_a_second(queue, start_worker):
    start_worker(WORKER_CONCURRENCY="1")
    wait_for(lambda: queue.connections()["worker"], "the worker's connection")

    def commits() -> int:
        return queue.rows("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")[0][0]

    before, began = commits(), time.monotonic()
    wait_for(lambda: time.monotonic() - began > 6, "six seconds")
    own = (time.monotonic() - began) / 6  # PostgreSQL's statistics come late: a rough measure is enough
    assert commits() - before <= 20 * own


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_worker_takes_one_connection_for_itself_and_one_for_each_job_at_a_time(pool, queue, start_worker, diary):
    start_worker(pool, WORKER_CONCURRENCY="2")
    send(queue, diary, *map(str, range(40)), task="touch_database")
    wait_for(lambda: len(diary.entries("end")) == 40, "all jobs done")
    assert queue.connections() == {"worker": 3}
    assert len({entry["backend"] for entry in diary.entries("end")}) <= 2  # kept from job to job


def test_a_job_longer_than_the_lease_runs_once_beside_an_idle_worker(queue, start_worker, diary):
    start_worker(WORKER_CONCURRENCY="1")
    send(queue, diary, "long", seconds=20)
    wait_for(lambda: diary.entries("start"), "the job's start")
    start_worker(WORKER_CONCURRENCY="1")
    wait_for(lambda: diary.entries("end"), "the job's end", 30)
    wait_for(lambda: queue.size() == 0, "its acknowledgement")
    assert diary.names("start") == {"long": 1}


def test_what_a_killed_worker_held_comes_back_within_the_lease(queue, start_worker, diary):
    killed = start_worker(WORKER_CONCURRENCY="2")
    send(queue, diary, "a", "b", seconds=6)
    wait_for(lambda: len(diary.entries("start")) == 2, "both jobs' start")
    killed.kill()
    began = time.monotonic()
    start_worker(WORKER_CONCURRENCY="2")
    wait_for(lambda: len(diary.entries("start")) == 4, "both jobs' second start", 20)
    assert time.monotonic() - began < 17
    wait_for(lambda: diary.names("end") == {"a": 1, "b": 1}, "both jobs' end")


def test_jobs_go_on_after_an_idle_child_is_killed(queue, start_worker, diary):
    worker = start_worker(WORKER_CONCURRENCY="2")
    for round_ in range(3):
        os.kill(worker.children()[-1], signal.SIGKILL)
        send(queue, diary, *(f"{round_}-{number}" for number in range(10)))
        wait_for(lambda: queue.size() == 0, "all jobs done")


def test_a_job_whose_child_is_killed_runs_again_at_once(queue, start_worker, diary):
    start_worker(WORKER_CONCURRENCY="1")
    send(queue, diary, "unlucky", seconds=2)
    started = wait_for(lambda: diary.entries("start"), "the job's start")[0]
    os.kill(started["pid"], signal.SIGKILL)
    wait_for(lambda: len(diary.entries("start")) == 2, "its second start", 10)
    wait_for(lambda: diary.entries("end"), "its end")


def test_a_stopped_worker_finishes_what_runs_and_puts_the_rest_back_at_once(queue, start_worker, diary):
    worker = start_worker(WORKER_CONCURRENCY="1")
    send(queue, diary, *map(str, range(6)), seconds=1.5)
    wait_for(lambda: diary.entries("start"), "a job's start")
    assert worker.stop() == 0
    assert diary.names("start") == diary.names("end")
    left = 6 - len(diary.entries("end"))
    assert left and queue.visible() == queue.size() == left
    assert "Traceback" not in worker.log()


def test_a_worker_told_to_quit_puts_even_the_running_job_back_at_once(queue, start_worker, diary):
    worker = start_worker(WORKER_CONCURRENCY="1")
    send(queue, diary, "long", seconds=60)
    wait_for(lambda: diary.entries("start"), "the job's start")
    worker.stop(number=signal.SIGQUIT)
    assert queue.visible() == 1


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_jobs_in_flight_outlive_a_restart_of_postgresql(pool, queue, start_worker, diary):
    worker = start_worker(pool, WORKER_CONCURRENCY="2")
    send(queue, diary, "warm-up", task="touch_database")
    wait_for(lambda: diary.entries("end"), "a job on a database connection")
    send(queue, diary, "a", "b", seconds=4)
    wait_for(lambda: len(diary.entries("start")) == 2, "both jobs' start")
    queue.cut(2)
    send(queue, diary, *map(str, range(10)), task="touch_database")
    wait_for(lambda: queue.size() == 0, "all jobs acknowledged", 15)
    assert diary.names("start") == {"a": 1, "b": 1}
    assert len(diary.entries("end")) == 13
    assert "can be reached again" in worker.log()
    assert "Traceback" not in worker.log()


def test_a_worker_starts_before_its_database(queue, start_worker, diary):
    with psycopg.connect(queue.admin, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {queue.name} ALLOW_CONNECTIONS false")
        worker = start_worker(WORKER_CONCURRENCY="1").says("the queue can't be reached")
        connection.execute(f"ALTER DATABASE {queue.name} ALLOW_CONNECTIONS true")
    send(queue, diary, "first")
    wait_for(lambda: diary.entries("end"), "the job's end")
    assert worker.popen.poll() is None


def test_a_message_in_pickle_is_refused_and_harms_nothing(queue, start_worker, diary):
    worker = start_worker(WORKER_CONCURRENCY="1")
    code = "from config import app\nwith app.producer_or_acquire() as p:\n"
    code += f"  tasks.note.apply_async(({str(diary.file)!r}, 'pickled'), serializer='pickle', producer=p)"
    assert call(queue, code).returncode == 0
    worker.says("Refusing to deserialize")
    send(queue, diary, "json")
    wait_for(lambda: queue.size() == 0, "both messages gone")
    assert diary.names("start") == {"json": 1}


def test_a_message_that_is_not_celery_s_goes_to_the_archive(queue, start_worker, diary):
    worker = start_worker(WORKER_CONCURRENCY="1")
    queue.rows("""SELECT pgmq.send('celery', '{"hello": 1}'), pgmq.send('celery', 'null')""")
    worker.says("not a message of Celery's")
    wait_for(lambda: queue.rows("SELECT count(*) FROM pgmq.a_celery") == [(2,)], "both in the archive")
    send(queue, diary, "next")
    wait_for(lambda: diary.entries("end"), "the next job's end")


def test_a_job_for_later_waits_in_the_database_not_in_a_worker(queue, start_worker, diary):
    worker = start_worker(WORKER_CONCURRENCY="1")
    code = f"import time; print(time.time()); tasks.note.apply_async(({str(diary.file)!r}, 'later'), countdown=3)"
    sent = float(call(queue, code).stdout)
    assert "received" not in worker.log()
    wait_for(lambda: diary.entries("end"), "its end", 10)
    assert 3 <= diary.entries("start")[0]["at"] - sent < 6  # the worker looks once a second


def test_a_retry_is_a_new_message(queue, start_worker, diary):
    start_worker(WORKER_CONCURRENCY="1")
    assert call(queue, f"tasks.retry_once.delay({str(diary.file)!r}, 'again', False)").returncode == 0
    wait_for(lambda: diary.names("end") == {"again": 1}, "the second run's end")


def test_a_retry_inside_a_transaction_is_refused_because_it_would_be_lost(queue, start_worker, diary):
    worker = start_worker(WORKER_CONCURRENCY="1")
    assert call(queue, f"tasks.retry_once.delay({str(diary.file)!r}, 'again', True)").returncode == 0
    worker.says("leave transaction.atomic() before retry()")


def test_the_worker_leaves_no_tables_of_its_own(queue, start_worker):
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'pgmq' ORDER BY 1"
    before = queue.rows(tables)
    start_worker(WORKER_CONCURRENCY="1").stop()
    assert queue.rows(tables) == before
    assert [name for (name,) in queue.rows("SELECT queue_name FROM pgmq.meta")] == ["celery"]


def test_another_queue_is_made_when_it_is_first_used(queue, start_worker, diary):
    code = f"tasks.note.apply_async(({str(diary.file)!r}, 'mail'), queue='mail')"
    assert call(queue, code).returncode == 0
    start_worker("prefork", "--queues", "mail,celery", WORKER_CONCURRENCY="1")
    send(queue, diary, "ordinary")
    wait_for(lambda: diary.names("end") == {"mail": 1, "ordinary": 1}, "jobs of both queues done")
