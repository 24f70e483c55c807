"""The demo's page as the server renders it: what a visitor without JavaScript gets."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.db import OperationalError
from django.test import Client

from demo import dyno, views
from demo.models import Job
from demo.templatetags.amounts import duration, megabytes
from tests.unit.test_demo_api import sent
from tests.unit.test_demo_dyno import STATUS

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def boiler(monkeypatch, settings):
    """A boiler that answers, and static files without a collectstatic."""
    static = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    settings.STORAGES = {**settings.STORAGES, "staticfiles": static}
    dyno._look.cache_clear()
    monkeypatch.setenv("BOILER_STATUS", "/run/boiler/status")
    monkeypatch.setattr(dyno, "ask", lambda *_: STATUS)
    yield
    dyno._look.cache_clear()


def page_of(response, status: int = 200) -> str:
    assert response.status_code == status
    return response.content.decode()


def test_the_page_shows_the_processes(client):
    page = page_of(client.get("/"))
    for text in ("gunicorn, answers requests", '"title">worker<', "backoff", "restarted"):
        assert text in page
    assert "hunter2" not in page


def test_the_page_allows_no_script_or_style_but_its_own_files(client):
    response = client.get("/")
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    page = page_of(response)
    assert not re.search(r"\sstyle=|<style|\son\w+=|<script(?![^>]*\ssrc=)", page)
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page)


def test_the_page_is_kept_by_no_cache(client):
    assert client.get("/").headers["Cache-Control"] == "no-store"


def test_the_latest_jobs_are_shown_newest_first(client):
    Job.add([("sleep", 0, 50)])
    shown = [int(number) for number in re.findall(r'<tr data-id="(\d+)"', page_of(client.get("/")))]
    assert shown == list(Job.objects.order_by("-pk").values_list("pk", flat=True)[: views.RECENT])


def test_the_error_of_a_failed_job_is_shown_as_text(client):
    Job.objects.create(kind="sleep", seconds=0, state="failed", error="ValueError: <script>")
    assert "ValueError: &lt;script&gt;" in page_of(client.get("/"))


def test_the_form_orders_a_job_and_leads_back_to_the_page():
    client = Client(enforce_csrf_checks=True)
    client.get("/")
    token = client.cookies["csrftoken"].value
    response = client.post("/", {"kind": "cpu", "seconds": "0.5", "csrfmiddlewaretoken": token})
    assert (response.status_code, response.headers["Location"]) == (302, "/")
    assert Job.objects.values_list("kind", "seconds", "state").get() == ("cpu", 0.5, "queued")
    assert sent() == [[Job.objects.get().pk, "cpu", 0.5]]


def test_the_form_of_another_site_orders_nothing():
    assert Client(enforce_csrf_checks=True).post("/", {"kind": "cpu", "seconds": "1"}).status_code == 403
    assert not Job.objects.exists()


@pytest.mark.parametrize(
    ("form", "hint"),
    [
        ({}, "kind must be"),
        ({"kind": "nap", "seconds": "1"}, "kind must be"),
        ({"kind": "sleep"}, "seconds must be"),
        ({"kind": "sleep", "seconds": ""}, "seconds must be"),
        ({"kind": "sleep", "seconds": "soon"}, "seconds must be"),
        ({"kind": "sleep", "seconds": "nan"}, "seconds must be"),
        ({"kind": "sleep", "seconds": "inf"}, "seconds must be"),
        ({"kind": "sleep", "seconds": "-1"}, "seconds must be"),
        ({"kind": "sleep\0", "seconds": "1"}, "kind must be"),
    ],
)
def test_a_bad_form_is_shown_again_with_the_reason(client, form, hint):
    assert hint in page_of(client.post("/", form), 400)
    assert not Job.objects.exists()


def test_a_full_queue_is_told_on_the_page(client, monkeypatch):
    monkeypatch.setenv("JOBS_WAITING", "1")
    client.post("/", {"kind": "sleep", "seconds": "1"})
    response = client.post("/", {"kind": "sleep", "seconds": "1"})
    assert "1 jobs are waiting" in page_of(response, 429)
    assert "Retry-After" in response.headers


def test_the_page_still_comes_when_the_database_is_out_of_reach(client, monkeypatch):
    def fail(*_args):
        raise OperationalError("connection refused")

    monkeypatch.setattr(Job.objects, "order_by", fail)
    page = page_of(client.get("/"), 503)
    assert "can&#x27;t be reached" in page
    assert "gunicorn, answers requests" in page


def test_the_page_still_comes_when_the_boiler_does_not_answer(client, monkeypatch):
    def fail(*_args):
        raise ConnectionRefusedError

    monkeypatch.setattr(dyno, "ask", fail)
    assert "The boiler doesn" in page_of(client.get("/"))


def test_the_page_says_when_the_app_runs_without_the_boiler(client, monkeypatch):
    monkeypatch.delenv("BOILER_STATUS")
    assert "runs without the boiler" in page_of(client.get("/"))


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (None, "—"),
        ("", "—"),
        (0, "0 s"),
        (0.0004, "0 ms"),
        (0.25, "250 ms"),
        (1, "1 s"),
        (1.26, "1.3 s"),
        (59, "59 s"),
        (60, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (187200, "2 d 4 h"),
        (timedelta(seconds=1.5), "1.5 s"),
    ],
)
def test_durations_are_written_in_the_two_largest_units(amount, text):
    assert duration(amount) == text


@pytest.mark.parametrize(("amount", "text"), [(None, "—"), (0, "0 MB"), (50 * 2**20, "50 MB")])
def test_memory_is_written_in_megabytes(amount, text):
    assert megabytes(amount) == text
