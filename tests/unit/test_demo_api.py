"""The demo's JSON API: what it takes, what it refuses, and how it says so."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.test import Client
from kombu.exceptions import OperationalError as BrokerError

from demo import orders, views
from demo.models import Job

pytestmark = pytest.mark.django_db

NOTHING = 10**17  # the id of no job


@pytest.fixture
def committing(transactional_db: None) -> Iterator[None]:
    """A database where commits are real; what they leave on the queue is taken off it."""
    yield
    with connection.cursor() as cursor:
        cursor.execute("select pgmq.purge_queue('celery')")


def post(client: Client, body: Any):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post("/jobs", data, content_type="application/json")


def sent() -> list[list[Any]]:
    """The arguments of the jobs on the queue."""
    with connection.cursor() as cursor:
        cursor.execute("select message->>'body' from pgmq.q_celery order by msg_id")
        return [json.loads(body)[0] for (body,) in cursor.fetchall()]


def refusal(response, status: int) -> str:
    """The one sentence of a refusal."""
    assert response.status_code == status, response.content
    assert response.headers["Content-Type"] == "application/json"
    (key,) = response.json()
    sentence = response.json()[key]
    assert key == "error"
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < 200
    return sentence


def test_an_order_is_stored_queued_and_answered_with_the_ids(client):
    response = post(client, {"kind": "cpu", "seconds": 2, "count": 3})
    assert response.status_code == 202
    ids = response.json()["ids"]
    assert len(set(ids)) == 3
    assert {job.pk: (job.kind, job.seconds, job.state) for job in Job.objects.all()} == dict.fromkeys(
        ids, ("cpu", 2.0, "queued")
    )
    assert sent() == [[job_id, "cpu", 2] for job_id in ids]


def test_seconds_and_count_may_be_left_out(client):
    (job_id,) = post(client, {"kind": "sleep"}).json()["ids"]
    assert Job.objects.get(pk=job_id).seconds == 0.1


@pytest.mark.parametrize("seconds", [0, 0.0, 60, 1e-9])
def test_seconds_from_0_to_60_are_taken(client, seconds):
    assert post(client, {"kind": "io", "seconds": seconds}).status_code == 202


def test_no_csrf_token_is_asked_for():
    assert post(Client(enforce_csrf_checks=True), {"kind": "sleep"}).status_code == 202


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (b"", "empty"),
        (b"kind=sleep", "not JSON"),
        (b'{"kind": "sleep"', "not JSON"),
        (b'{"kind": "sleep"} x', "not JSON"),
        (b'\xef\xbb\xbf{"kind": "sleep"}', "not JSON"),
        (b'{"kind": "sl\xff"}', "not UTF-8"),
        ('{"kind": "sleep"}'.encode("utf-16"), "not UTF-8"),
        (b"\0", "not JSON"),
        (b'{"kind": "sleep\0"}', "not JSON"),
        (b'{"kind": "sleep\\u0000"}', "kind must be"),
        (b'{"\\u0000": 1}', "There is no"),
        (b'{"\\ud800": 1}', "There is no"),
        (b"[" * 9_999, "The body is"),
        (b'{"a":' * 1_999, "The body is"),
        (b'{"kind": "sleep", "seconds": NaN}', "not JSON"),
        (b'{"kind": "sleep", "seconds": Infinity}', "not JSON"),
        (b'{"kind": "sleep", "seconds": -Infinity}', "not JSON"),
        (b'{"kind": "sleep", "seconds": 1e999}', "seconds must be"),
        (b'{"kind": "sleep", "seconds": ' + b"9" * 4_000 + b"}", "seconds must be"),
        (b'{"kind": "sleep", "count": ' + b"9" * 4_000 + b"}", "count must be"),
        (b'{"kind": "sleep", "count": ' + b"9" * 9_000 + b"}", "not JSON"),
        (b"null", "JSON object"),
        (b"[]", "JSON object"),
        (b'"sleep"', "JSON object"),
        (b"1", "JSON object"),
        (b"{}", "kind must be"),
        (b'{"kind": "nap"}', "kind must be"),
        (b'{"kind": ""}', "kind must be"),
        (b'{"kind": null}', "kind must be"),
        (b'{"kind": true}', "kind must be"),
        (b'{"kind": ["sleep"]}', "kind must be"),
        (b'{"kind": {"sleep": 1}}', "kind must be"),
        (b'{"kind": "sleep", "second": 1}', '"second"'),
        (b'{"kind": "sleep", "' + b"x" * 9_000 + b'": 1}', "There is no"),
        (b'{"kind": "sleep", "seconds": -0.1}', "seconds must be"),
        (b'{"kind": "sleep", "seconds": 60.1}', "seconds must be"),
        (b'{"kind": "sleep", "seconds": "1"}', "seconds must be"),
        (b'{"kind": "sleep", "seconds": true}', "seconds must be"),
        (b'{"kind": "sleep", "seconds": null}', "seconds must be"),
        (b'{"kind": "sleep", "seconds": [1]}', "seconds must be"),
        (b'{"kind": "sleep", "count": 0}', "count must be"),
        (b'{"kind": "sleep", "count": -1}', "count must be"),
        (b'{"kind": "sleep", "count": 1.0}', "count must be"),
        (b'{"kind": "sleep", "count": "1"}', "count must be"),
        (b'{"kind": "sleep", "count": true}', "count must be"),
        (b'{"kind": "sleep", "count": null}', "count must be"),
    ],
    ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_a_bad_order_is_refused_with_one_sentence_and_leaves_no_job(client, body, hint):
    assert hint in refusal(post(client, body), 400)
    assert not Job.objects.exists()
    assert sent() == []


def test_a_body_of_1_mb_is_refused(client):
    assert "too large" in refusal(post(client, b'{"kind": "sleep", "x": "' + b"x" * 1_000_000 + b'"}'), 413)


def test_a_body_announced_as_terabytes_is_refused_without_reading_it_all(client):
    class Endless(io.BytesIO):
        sent = 0

        def read(self, size: int) -> bytes:
            self.sent += size
            return bytes(size)

    stream = Endless()
    response = client.generic("POST", "/jobs", b"x", CONTENT_LENGTH=str(10**12), **{"wsgi.input": stream})
    refusal(response, 413)
    assert stream.sent < 10**7


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/jobs", "GET, POST, HEAD, OPTIONS"),
        ("DELETE", "/jobs", "GET, POST, HEAD, OPTIONS"),
        ("POST", "/jobs/1", "GET, HEAD, OPTIONS"),
        ("DELETE", "/jobs/1", "GET, HEAD, OPTIONS"),
        ("POST", "/status", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_wrong_method_is_answered_with_those_allowed(client, method, path, allowed):
    response = client.generic(method, path, b"{}")
    refusal(response, 405)
    assert response.headers["Allow"] == allowed


# --- limits ---


def test_more_jobs_than_a_call_may_bring_are_to_come_in_several(client, monkeypatch):
    monkeypatch.setenv("JOBS_PER_CALL", "5")
    response = post(client, {"kind": "sleep", "count": 6})
    assert "5 jobs" in refusal(response, 429)
    assert int(response.headers["Retry-After"]) >= 1
    assert post(client, {"kind": "sleep", "count": 5}).status_code == 202


def test_more_jobs_than_may_ever_wait_are_a_mistake(client, monkeypatch):
    monkeypatch.setenv("JOBS_WAITING", "5")
    response = post(client, {"kind": "sleep", "count": 6})
    assert "at most 5" in refusal(response, 400)
    assert "Retry-After" not in response.headers


def test_the_queue_takes_as_many_as_may_wait_and_then_no_more(client, monkeypatch):
    monkeypatch.setenv("JOBS_WAITING", "5")
    assert post(client, {"kind": "sleep", "count": 4}).status_code == 202
    assert "4 jobs are waiting" in refusal(post(client, {"kind": "sleep", "count": 2}), 429)
    assert post(client, {"kind": "sleep"}).status_code == 202
    assert "5 jobs are waiting" in refusal(post(client, {"kind": "sleep"}), 429)
    assert Job.objects.count() == len(sent()) == 5


@pytest.mark.parametrize("state", ["running", "done", "failed"])
def test_a_job_that_waits_no_more_makes_room(client, monkeypatch, state):
    monkeypatch.setenv("JOBS_WAITING", "1")
    post(client, {"kind": "sleep"})
    Job.objects.update(state=state)
    assert post(client, {"kind": "sleep"}).status_code == 202


@pytest.mark.parametrize(("finished", "wait"), [(0, 60), (1, 40), (20, 2), (1000, 1)], ids=str)
def test_retry_after_follows_the_pace_of_the_last_ten_seconds(client, monkeypatch, finished, wait):
    monkeypatch.setenv("JOBS_WAITING", "10")
    post(client, {"kind": "sleep", "count": 7})
    with connection.cursor() as cursor:
        cursor.execute(
            "insert into demo_job (kind, seconds, state, finished)"
            " select 'sleep', 0, 'done', now() - n * interval '1 hour' from generate_series(0, 1) n,"
            " generate_series(1, %s)",
            [finished],
        )
    response = post(client, {"kind": "sleep", "count": 7})
    refusal(response, 429)
    assert response.headers["Retry-After"] == str(wait)


def test_many_orders_at_once_do_not_pass_the_limit(committing, monkeypatch):
    monkeypatch.setenv("JOBS_WAITING", "50")

    def order(_):
        try:
            return post(Client(), {"kind": "sleep", "count": 20}).status_code
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(order, range(8)))
    assert statuses == [202] * 2 + [429] * 6
    assert Job.objects.count() == 40


# --- what can't be reached ---


def test_a_database_out_of_reach_is_answered_503(client, monkeypatch):
    def fail(*_args):
        raise OperationalError("connection refused")

    monkeypatch.setattr(orders, "place", fail)
    response = post(client, {"kind": "sleep"})
    refusal(response, 503)
    assert int(response.headers["Retry-After"]) >= 1


def test_a_database_out_of_reach_is_answered_503_to_readers(client, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OperationalError("connection refused")

    monkeypatch.setattr(Job.objects, "filter", fail)
    for path in ("/jobs/1", "/jobs?ids=1,2"):
        response = client.get(path)
        refusal(response, 503)
        assert "Retry-After" in response.headers


def test_jobs_that_a_broker_refused_after_the_commit_are_taken_back(committing, client, monkeypatch):
    def refuse():
        raise BrokerError("connection refused")

    monkeypatch.setattr(orders, "enqueue", lambda *_: transaction.on_commit(refuse))
    response = post(client, {"kind": "sleep", "count": 2})
    refusal(response, 503)
    assert not Job.objects.exists()


# --- following ---


def test_a_job_is_shown_with_all_that_is_known_of_it(client):
    (job_id,) = post(client, {"kind": "sleep", "seconds": 0.5}).json()["ids"]
    shown = client.get(f"/jobs/{job_id}").json()
    created = shown.pop("created")
    assert created.endswith("+00:00")
    assert shown == {
        "id": job_id,
        "kind": "sleep",
        "seconds": 0.5,
        "state": "queued",
        "started": None,
        "finished": None,
        "pid": None,
        "runs": 0,
        "error": None,
    }


@pytest.mark.parametrize(
    "job_id", [NOTHING, 0, -1, "x", "1.0", "%00", "%FF", "\u0661", "9" * 19, "9" * 5_000], ids=lambda v: str(v)[:20]
)
def test_an_unknown_job_is_answered_404_in_json(client, job_id):
    refusal(client.get(f"/jobs/{job_id}"), 404)


def test_many_jobs_are_followed_in_one_request(client):
    ids = post(client, {"kind": "sleep", "count": 3}).json()["ids"]
    response = client.get("/jobs", {"ids": f"{ids[2]},{ids[0]},{NOTHING}"})
    assert [job["id"] for job in response.json()["jobs"]] == [ids[0], ids[2]]
    assert response.headers["Cache-Control"] == "no-store"


def test_as_many_ids_are_taken_as_a_request_line_holds(client):
    ids = ",".join(["999999999"] * views.MAX_IDS)
    assert client.get(f"/jobs?ids={ids}").status_code == 200
    assert len(f"GET /jobs?ids={ids} HTTP/1.1") < 4094


@pytest.mark.parametrize("ids", ["", ",", "1,", "x", "-1", "1.5", "\0", "9" * 30, ",".join("1" * 401)])
def test_bad_ids_are_refused(client, ids):
    refusal(client.get("/jobs", {"ids": ids}), 400)


def test_jobs_without_ids_is_refused(client):
    refusal(client.get("/jobs"), 400)


def test_an_order_takes_as_many_statements_for_many_jobs_as_for_two(client, django_assert_max_num_queries):
    with django_assert_max_num_queries(8):
        post(client, {"kind": "sleep", "count": 500})


def test_the_longest_body_fits_the_longest_order():
    assert len(json.dumps({"kind": "sleep", "seconds": 1 / 3, "count": 10**9})) < views.MAX_BODY
