"""Sending jobs: with the transaction, in one round trip, and on other brokers after the commit."""

from __future__ import annotations

import signal

import pytest

from tests import servers
from tests.jobs import call
from tests.wait import wait_for

IN_ATOMIC = """
from django.db import transaction, connection
from jobs.queue import enqueue
import os, signal
try:
    with transaction.atomic():
        tasks.note.delay('/dev/null', 'delayed')
        enqueue(tasks.note, [('/dev/null', 'enqueued')])
        {ending}
except ZeroDivisionError:
    pass
"""


def test_jobs_of_a_transaction_exist_when_it_commits(queue):
    assert call(queue, IN_ATOMIC.format(ending="pass")).returncode == 0
    assert queue.sent() == {"tests.jobs_tasks.note": 2}


def test_jobs_of_a_transaction_do_not_exist_when_it_rolls_back(queue):
    assert call(queue, IN_ATOMIC.format(ending="1 / 0")).returncode == 0
    assert queue.size() == 0


def test_jobs_of_a_transaction_do_not_exist_when_its_process_is_killed_before_the_commit(queue):
    done = call(queue, IN_ATOMIC.format(ending="os.kill(os.getpid(), signal.SIGKILL)"))
    assert done.returncode == -signal.SIGKILL
    assert queue.size() == 0


def test_enqueue_writes_what_delay_writes(queue):
    code = """
from jobs.queue import enqueue
enqueue(tasks.note, [("/dev/null", "x", 1), ("/dev/null", "x", 1)])
tasks.note.delay("/dev/null", "x", 1)
"""
    assert call(queue, code).returncode == 0
    messages = [message for (message,) in queue.rows("SELECT message FROM pgmq.q_celery ORDER BY msg_id")]
    ids = [message["headers"]["id"] for message in messages]
    assert len(set(ids)) == 3
    for message in messages:
        task_id = message["headers"].pop("id")
        assert message["headers"].pop("root_id") == message["properties"].pop("correlation_id") == task_id
        assert message["headers"].pop("origin")
        for unique in ("delivery_tag", "reply_to"):
            assert message["properties"].pop(unique)
    first, copy, delayed = messages
    assert first == copy == delayed
    assert first["content-type"] == "application/json"


def test_enqueue_lets_celery_make_each_message_for_those_who_listen(queue):
    code = """
from celery.signals import before_task_publish
from jobs.queue import enqueue
before_task_publish.connect(lambda body, **_: print(*body[0]), weak=False)
enqueue(tasks.note, [("file", "a"), ("file", "b")])
"""
    assert call(queue, code).stdout.split("\n") == ["file a", "file b", ""]


def test_enqueue_compresses_what_celery_would_compress(queue):
    code = """
from celery import current_app
from jobs.queue import enqueue
current_app.conf.task_compression = "gzip"
enqueue(tasks.note, [("file", "a"), ("file", "b")])
"""
    assert call(queue, code).returncode == 0
    assert queue.rows("SELECT message->'headers'->>'compression' FROM pgmq.q_celery") == [("application/x-gzip",)] * 2


def test_a_thousand_jobs_take_one_round_trip_and_one_job_takes_one(queue):
    code = """
from django.db import connection
from django.test.utils import CaptureQueriesContext
from jobs.queue import enqueue
calls = [("/dev/null", str(number)) for number in range(1000)]
for send in (lambda: enqueue(tasks.note, calls), lambda: tasks.note.delay("", "")):
    with CaptureQueriesContext(connection) as queries:
        send()
    print(len(queries))
"""
    assert call(queue, code).stdout.split() == ["1", "1"]
    assert queue.size() == 1001


def test_waiting_counts_what_no_worker_holds(queue):
    queue.rows("SELECT pgmq.send('celery', '{}') FROM generate_series(1, 5)")
    queue.rows("SELECT pgmq.read('celery', 60, 2)")
    assert call(queue, "from jobs.queue import waiting\nprint(waiting())").stdout.strip() == "3"


def test_a_queue_without_tables_fails_the_check_with_the_command_that_helps(queue):
    queue.rows("SELECT pgmq.drop_queue('celery')")
    assert "run `python app/manage.py migrate`" in call(queue, "from jobs.queue import check\ncheck()").stderr


@pytest.fixture(params=[(servers.Redis, "REDIS_URL"), (servers.RabbitMQ, "AMQP_URL")], ids=["redis", "rabbitmq"])
def broker(request) -> dict[str, str]:
    server, variable = request.param
    with server() as running:
        yield {variable: running.url}


def test_another_broker_gets_jobs_after_the_commit_and_its_worker_does_them(broker, queue, start_worker, diary):
    code = f"""
from django.db import transaction
from jobs.queue import check, enqueue, waiting
check()
file = {str(diary.file)!r}
class Undone(Exception): pass
try:
    with transaction.atomic():
        tasks.note.delay(file, 'undone')
        enqueue(tasks.note, [(file, 'undone')])
        raise Undone
except Undone:
    pass
with transaction.atomic():
    sent = tasks.note.delay(file, 'delayed')
    enqueue(tasks.note, [(file, str(number)) for number in range(20)])
    print(sent.id and waiting())
print(waiting())
"""
    done = call(queue, code, **broker)
    assert done.stdout.split() == ["0", "21"], done.stderr
    worker = start_worker(**broker, WORKER_CONCURRENCY="2")
    wait_for(lambda: len(diary.entries("end")) == 21, "all jobs done")
    assert diary.names("start") == {"delayed": 1, **{str(number): 1 for number in range(20)}}
    assert queue.size() == 0
    assert worker.stop() == 0


def test_a_broker_that_is_not_there_fails_the_check_within_three_seconds(queue):
    code = """
import time
from jobs.queue import check, QueueError
began = time.monotonic()
try:
    check()
except QueueError as error:
    print(time.monotonic() - began < 3.5, error)
"""
    for broker in ({"REDIS_URL": "redis://127.0.0.1:1/0"}, {"AMQP_URL": "amqp://guest:secret@127.0.0.1:1//"}):
        assert call(queue, code, **broker).stdout.strip() == "True the queue's broker can't be reached"


def test_the_settings_for_heroku_s_redis_accept_its_self_signed_certificate(queue):
    code = "from config import app\nprint(app.connection().ssl)"
    assert "CERT_NONE" in call(queue, code, REDIS_URL="rediss://:secret@127.0.0.1:1/0").stdout


def test_pool_limits_do_not_hold_up_publishers_who_hold_connections(queue):
    """Ten threads in transactions, two more without, on a pool of two: nothing waits for what others hold."""
    code = """
from concurrent.futures import ThreadPoolExecutor
from django.db import connection, transaction
def publish(number):
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.01)")
        tasks.note.delay("/dev/null", str(number))
    connection.close()
with ThreadPoolExecutor(30) as pool:
    list(pool.map(publish, range(200)))
connection.close_pool()
"""
    done = call(queue, code, BOILER_WEB="1", DATABASE_POOL="2")
    assert (done.returncode, done.stderr) == (0, "")
    assert queue.size() == 200
