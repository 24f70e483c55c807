"""Django's admin: who gets in, and what an operator can do there."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.test import Client
from django_celery_beat.models import PeriodicTask

from demo.models import Job
from jobs.models import ParkedJob
from tests.unit.test_demo_api import sent

pytestmark = pytest.mark.django_db


@pytest.fixture
def account() -> tuple[str, str]:
    """A superuser's name and password, as `manage.py admin` prints them."""
    out = StringIO()
    call_command("admin", "anna", stdout=out)
    return re.search(r"name (\S+), password (\S+)", out.getvalue()).groups()


@pytest.fixture
def operator(account: tuple[str, str]) -> Client:
    client = Client()
    assert log_in(client, *account).status_code == 302
    return client


def log_in(client: Client, name: str, password: str, address: str = "192.0.2.1"):
    form = {"username": name, "password": password, "next": "/admin/"}
    return client.post("/admin/login/", form, headers={"X-Forwarded-For": f"10.0.0.1, {address}"})


@pytest.fixture(autouse=True)
def static(settings):
    static = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    settings.STORAGES = {**settings.STORAGES, "staticfiles": static}


def parked(task: str = "demo.tasks.run") -> ParkedJob:
    return ParkedJob.objects.create(task_id=task, task=task, args=[7, "sleep", 0], kwargs={}, starts=5)


def act(operator: Client, action: str, job: ParkedJob) -> str:
    form = {"action": action, "_selected_action": [job.pk]}
    return operator.post("/admin/jobs/parkedjob/", form, follow=True).content.decode()


def test_nobody_gets_in_without_an_account(client):
    assert "/admin/login/" in client.get("/admin/jobs/parkedjob/").headers["Location"]
    assert log_in(client, "anna", "guess").status_code == 200
    assert "/admin/login/" in client.get("/admin/").headers["Location"]


def test_five_wrong_passwords_shut_an_address_out_and_no_other(account):
    for _ in range(5):
        log_in(Client(), "anna", "guess")
    assert log_in(Client(), *account).status_code == 429
    assert log_in(Client(), *account, address="192.0.2.2").status_code == 302


def test_a_new_password_replaces_the_old_one(account):
    out = StringIO()
    call_command("admin", "anna", stdout=out)
    assert "new password" in out.getvalue()
    assert log_in(Client(), *account).status_code == 200
    assert get_user_model().objects.count() == 1


def test_a_parked_job_is_put_back_on_the_queue(operator):
    job = parked()
    assert "demo.tasks.run" in operator.get("/admin/jobs/parkedjob/").content.decode()
    assert "On the queue again: 1." in act(operator, "retry", job)
    assert not ParkedJob.objects.exists()
    assert sent() == [[7, "sleep", 0]]


def test_a_parked_job_of_a_task_that_is_gone_stays(operator):
    page = act(operator, "retry", parked("shop.tasks.gone"))
    assert "There is no task shop.tasks.gone any more" in page
    assert ParkedJob.objects.count() == 1
    assert sent() == []


def test_a_parked_job_is_thrown_away(operator):
    assert "Thrown away: 1." in act(operator, "discard", parked())
    assert not ParkedJob.objects.exists()
    assert sent() == []


def test_the_schedule_can_be_edited(operator):
    task = PeriodicTask.objects.get(task="demo.tasks.prune")
    url = f"/admin/django_celery_beat/periodictask/{task.pk}/change/"
    page = operator.get(url).content.decode()
    assert '<option value="demo.tasks.prune"' in page
    form = {"name": task.name, "regtask": task.task, "crontab": task.crontab_id, "args": "[]", "kwargs": "{}"}
    answer = operator.post(url, {**form, "priority": "", "headers": "{}", "expire_seconds": 30})
    assert answer.status_code == 302, re.findall(r"errorlist.*?</ul>", answer.content.decode())
    task.refresh_from_db()
    assert (task.enabled, task.expire_seconds) == (False, 30)


def test_results_are_shown_and_not_changed(operator):
    job = Job.objects.create(kind="io", seconds=1, state="failed", error="OSError: out of salt")
    assert "out of salt" in operator.get("/admin/demo/job/?state=failed").content.decode()
    assert operator.post(f"/admin/demo/job/{job.pk}/change/", {"state": "done"}).status_code == 403


def test_other_pages_start_no_session(client, django_assert_num_queries):
    with django_assert_num_queries(0):
        response = client.get("/hello")
    assert not response.cookies
