"""gunicorn: its titles, its database connections, and what it says when it can't start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError

import pytest

from boiler.settings import ROOT
from tests.dyno import free_port
from tests.jobs import APP, WEB, Process
from tests.wait import wait_for


class Web:
    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.port = port

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def answers(self) -> bool:
        try:
            return self.get("/healthz")[0] == 200
        except OSError:
            return False


@pytest.fixture
def serve(start) -> Callable[..., Web]:
    def serve_ready(application: str = "tests.jobs_wsgi", **environ: str) -> Web:
        port = free_port()
        web = Web(start(*WEB, application, PORT=str(port), BIND_ADDRESS="127.0.0.1", **environ), port)
        wait_for(lambda: web.answers() or web.process.popen.poll() is not None, "an answer")
        assert web.process.popen.poll() is None, web.process.log()
        return web

    return serve_ready


@pytest.mark.parametrize("worker_class", ["gevent", "gthread", "sync"])
def test_the_master_and_its_workers_are_told_apart_by_their_titles(worker_class, serve):
    web = serve("config.wsgi", WEB_WORKER_CLASS=worker_class)
    expected = ["web: gunicorn master"] + [f"web: gunicorn worker ({worker_class})"] * 2
    wait_for(lambda: sorted(web.process.titles()) == expected, "the titles")
    os.kill(web.process.children()[0], 9)
    wait_for(lambda: sorted(web.process.titles()) == expected, "the same titles after a worker was replaced")
    assert web.process.stop() == 0
    assert "Traceback" not in web.process.log()


def test_under_gevent_two_queries_take_the_time_of_one(serve):
    web = serve(WEB_CONCURRENCY="1")
    with ThreadPoolExecutor(2) as pool:
        web.get("/sleep/1")
        began = time.monotonic()
        assert {status for status, _ in pool.map(web.get, ["/sleep/1000"] * 2)} == {200}
    assert time.monotonic() - began < 1.8


@pytest.mark.parametrize("worker_class", ["gevent", "gthread"])
def test_two_hundred_requests_at_once_share_the_pool_s_few_connections(worker_class, serve, queue):
    web = serve(DATABASE_POOL="4", WEB_CONCURRENCY="2", WEB_WORKER_CLASS=worker_class)
    seen = 0
    with ThreadPoolExecutor(200) as pool:
        futures = [pool.submit(web.get, "/sleep/50") for _ in range(400)]
        while not all(future.done() for future in futures):
            seen = max(seen, queue.connections()["web"])
            time.sleep(0.05)
    assert {future.result()[0] for future in futures} == {200}
    assert 1 < seen <= 8


def test_two_hundred_greenlets_publish_at_once_and_every_job_arrives(serve, queue):
    web = serve(DATABASE_POOL="4", WEB_CONCURRENCY="1")
    paths = [f"/publish?name={number}" + ("&atomic=1" if number % 2 else "") for number in range(1000)]
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(web.get, paths))
    assert {status for status, _ in answers} == {200}
    bodies = queue.rows("SELECT (message->>'body')::jsonb #>> '{0,1}' FROM pgmq.q_celery")
    assert sorted(int(name) for (name,) in bodies) == list(range(1000))


def test_the_web_comes_back_after_a_restart_of_postgresql(serve, queue):
    web = serve(WEB_CONCURRENCY="1")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(web.get, ["/sleep/200"] * 4))  # every connection of the pool is open
    queue.cut(4)
    wait_for(web.answers, "/healthz answers 200 again", 8)
    assert [web.get("/sleep/1")[0] for _ in range(8)] == [200] * 8


def test_the_health_check_makes_do_with_the_pool_s_only_connection(serve, queue):
    web = serve("config.wsgi", WEB_CONCURRENCY="2", DATABASE_POOL="1", BOILER_PROCESS="front")
    assert {web.get("/healthz")[0] for _ in range(10)} == {200}
    assert queue.connections().keys() == {"front"}
    assert queue.connections()["front"] <= 2


def test_there_is_no_control_socket_and_no_access_log(serve, tmp_path):
    web = serve("config.wsgi", HOME=str(tmp_path), XDG_RUNTIME_DIR=str(tmp_path))
    web.get("/")
    assert not [path for path in tmp_path.rglob("*") if path.is_socket()]
    assert "GET /" not in web.process.log()


def test_an_access_log_can_be_asked_for_as_heroku_does(serve):
    web = serve("config.wsgi", GUNICORN_CMD_ARGS="--access-logfile -")
    web.get("/healthz")
    wait_for(lambda: "GET /healthz" in web.process.log(), "a line of the access log")


def test_the_page_has_its_style_without_collectstatic(serve):
    web = serve("config.wsgi")
    status, page = web.get("/")
    style = re.search(r'href="(/static/[^"]+\.css)"', page)
    assert status == 200
    assert style and web.get(style[1])[0] == 200


def test_https_is_insisted_on_but_not_for_the_health_check(serve):
    web = serve("config.wsgi", DJANGO_HTTPS="1", DJANGO_ALLOWED_HOSTS="example.org")
    assert web.get("/healthz", Host="10.0.0.1")[0] == 200
    assert web.get("/", Host="10.0.0.1", **{"X-Forwarded-Proto": "https"})[0] == 400
    opener = urllib.request.build_opener(NoRedirect)
    request = urllib.request.Request(f"http://127.0.0.1:{web.port}/", headers={"Host": "example.org"})
    with pytest.raises(HTTPError) as redirect:
        opener.open(request)
    assert (redirect.value.code, redirect.value.headers["Location"]) == (301, "https://example.org/")


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args):
        return None


GUNICORN = (*WEB, "config.wsgi")
CELERY = ("-m", "celery", "--workdir", str(APP), "--app", "config")
MANAGE = (str(APP / "manage.py"),)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("DJANGO_SECRET_KEY", "", "DJANGO_SECRET_KEY is not set"),
        ("DATABASE_URL", "mysql://x/y", "DATABASE_URL: must look like postgresql://"),
        ("LOG_LEVEL", "loud", "LOG_LEVEL=loud: must be one of"),
    ],
)
@pytest.mark.parametrize("command", [GUNICORN, (*CELERY, "worker"), (*CELERY, "beat"), (*MANAGE, "check")])
def test_a_setting_that_can_t_be_used_is_one_line_and_a_failure(command, name, value, expected):
    environ = {**os.environ, "PORT": str(free_port()), name: value}
    done = subprocess.run(
        [sys.executable, *command], env=environ, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert done.stderr.startswith(f"error: {expected}")
    assert (done.stderr + done.stdout).count("\n") == 1
