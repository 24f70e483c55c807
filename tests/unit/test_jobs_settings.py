"""Django's settings as they follow from the environment, each in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from boiler.settings import ROOT

APP = ROOT / "app"
GOOD = {"DJANGO_HTTPS": "1", "DATABASE_URL": "postgresql://dyno:secret@db.example.com:5433/x?sslmode=require"}


def read(*names: str, argv: tuple[str, ...] = (), **environ: str) -> list:
    """Values of settings; those that JSON has no word for come as text."""
    values = f"[getattr(settings, name) for name in {names}]"
    code = f"import json\nfrom config import settings\nprint(json.dumps({values}, default=str))"
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        env={**os.environ, **GOOD, "PYTHONPATH": str(APP), **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def manage(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(APP / "manage.py"), *words]
    env = {**os.environ, **GOOD, **environ}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_the_deployment_check_is_clean_with_https():
    done = manage("check", "--deploy", "--fail-level", "WARNING")
    assert done.returncode == 0
    assert "System check identified no issues (2 silenced)." in done.stdout + done.stderr


@pytest.mark.parametrize("environ", [{"DJANGO_DEBUG": "1"}, {"DJANGO_HTTPS": "0"}])
def test_nothing_insists_on_https_in_development_or_without_tls(environ):
    names = ("SECURE_SSL_REDIRECT", "SECURE_HSTS_SECONDS", "CSRF_COOKIE_SECURE", "SECURE_PROXY_SSL_HEADER")
    assert read(*names, **environ) == [False, 0, False, None]


def test_any_host_may_ask_in_development_only():
    assert read("ALLOWED_HOSTS", DJANGO_DEBUG="1") == [["*"]]
    assert read("ALLOWED_HOSTS", DJANGO_ALLOWED_HOSTS="a.example, b.example") == [["a.example", "b.example"]]


def test_static_files_are_collected_without_secret_and_database(tmp_path):
    done = manage("collectstatic", "--noinput", "--dry-run", DJANGO_SECRET_KEY="", DATABASE_URL="", DYNO="run.1")
    assert done.returncode == 0, done.stderr


def test_the_web_shares_a_pool_and_others_keep_their_one_connection():
    (web,) = read("DATABASES", BOILER_WEB="1", DATABASE_POOL="7")
    pool = web["default"]["OPTIONS"]["pool"]
    assert (pool["min_size"], pool["max_size"], web["default"]["CONN_MAX_AGE"]) == (1, 7, 0)
    (other,) = read("DATABASES")
    assert "pool" not in other["default"]["OPTIONS"]
    assert (other["default"]["CONN_MAX_AGE"], other["default"]["CONN_HEALTH_CHECKS"]) == (None, True)


def test_the_options_of_the_database_url_are_kept():
    (databases,) = read("DATABASES")
    assert databases["default"]["OPTIONS"]["sslmode"] == "require"
    assert (databases["default"]["HOST"], databases["default"]["PORT"]) == ("db.example.com", 5433)


@pytest.mark.parametrize(
    ("environ", "argv", "expected"),
    [
        ({"BOILER_PROCESS": "mailer"}, ("worker",), "mailer"),
        ({"BOILER_WEB": "1"}, (), "web"),
        ({}, ("-A", "config", "worker", "--pool", "prefork"), "worker"),
        ({}, ("-A", "config", "beat"), "beat"),
        ({}, ("migrate",), "manage"),
    ],
)
def test_connections_carry_the_name_of_their_process(environ, argv, expected):
    (databases,) = read("DATABASES", argv=argv, **environ)
    name, fingerprint = databases["default"]["OPTIONS"]["application_name"].split()
    assert name == expected
    assert len(fingerprint) == 8


def test_a_broker_s_url_switches_the_broker():
    assert read("BROKER", "CELERY_BROKER_URL")[0] == "pgmq"
    assert read("CELERY_BROKER_URL", REDIS_URL="redis://h/1") == ["redis://h/1"]
    assert read("CELERY_BROKER_URL", AMQP_URL="amqp://u:p@h/v") == ["amqp://u:p@h/v"]


def test_only_json_is_accepted():
    names = ("CELERY_ACCEPT_CONTENT", "CELERY_TASK_SERIALIZER", "CELERY_RESULT_SERIALIZER", "CELERY_EVENT_SERIALIZER")
    assert read(*names) == [["json"], "json", "json", "json"]


def test_a_record_is_one_line_whatever_it_holds():
    code = (
        "import django, logging; django.setup()\ntry: 1/0\nexcept Exception: logging.getLogger('x').exception('a\\nb')"
    )
    env = {**os.environ, "PYTHONPATH": str(APP)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "x: a\\nb\\nTraceback" in done.stderr
