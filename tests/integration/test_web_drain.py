"""gunicorn when the dyno is stopped: no request is lost, and the process leaves as soon as it can.

Each class of workers, each way in which platforms stop a dyno. The WSGI application is a small one of the tests'.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import product

import pytest

from boiler.settings import ROOT
from tests.dyno import Dyno
from tests.platform import DOCKER, HEROKU, PIKU, Ending, Platform
from tests.wait import wait_for

CLASSES = ("gevent", "gthread", "sync")
GET = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
PLATFORMS = {platform.stop.value: platform for platform in (HEROKU, DOCKER, PIKU)}
EVERY = pytest.mark.parametrize(("how", "kind"), list(product(PLATFORMS, CLASSES)))
LINE = "web: gunicorn --config app/config/gunicorn.py sample:application\n"
SAMPLE = '''
import os
import sys
import time


def application(environ, start_response):
    """/, /slow?SECONDS of waiting, /busy?SECONDS of computing, /stream without end."""
    path, seconds = environ["PATH_INFO"], float(environ["QUERY_STRING"] or 0)
    if path != "/":
        sys.stderr.write(f"begins {path}?{environ['QUERY_STRING']}\\n")  # one write: workers share the log
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return endless()
    if path == "/slow":
        time.sleep(seconds)
    until = time.monotonic() + seconds
    while path == "/busy" and time.monotonic() < until:
        pass
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def endless():
    while True:
        yield b"more"
        time.sleep(0.05)
'''
Scratch = Callable[..., Dyno]
WebDyno = Callable[..., Dyno]


@pytest.fixture
def web(scratch: Scratch) -> WebDyno:
    """Start a dyno with gunicorn, as it is configured here, on the sample: `web(HEROKU, "sync", grace=3)`."""

    def start(platform: Platform, kind: str, grace: int = 10, **environ: str) -> Dyno:
        dyno = scratch(LINE, WEB_WORKER_CLASS=kind, DYNO_GRACE=str(grace), **environ)
        dyno.platform = replace(platform, grace=grace)
        config = dyno.root / "app" / "config"
        if not config.exists():
            config.mkdir()
            (config / "__init__.py").touch()
            for name in ("gunicorn.py", "stopping.py", "web_worker.py"):
                shutil.copy(ROOT / "app" / "config" / name, config / name)
            (dyno.root / "app" / "sample.py").write_text(SAMPLE)
        dyno.start()
        wait_for(lambda: len(workers(dyno)) == int(environ.get("WEB_CONCURRENCY", "2")), "the workers answer")
        return dyno

    return start


def workers(dyno: Dyno) -> set[str]:
    """The pids of the workers that have answered a few requests."""
    with suppress(OSError, http.client.HTTPException):
        return {dyno.get("/slow?0.02")[1] for _ in range(6)} | set(fetch_at_once(dyno, 6))
    return set()


def fetch_at_once(dyno: Dyno, count: int) -> list[str]:
    with ThreadPoolExecutor(count) as pool:
        return [answer[1] for answer in pool.map(lambda _: dyno.get("/slow?0.02"), range(count))]


def show(what: str, how: str, kind: str, ending: Ending, more: str = "") -> None:
    print(f"\n{what}: {how}, {kind}: gone after {ending.seconds:.2f} s, exit code {ending.returncode}{more}")


def assert_ordered(ending: Ending, dyno: Dyno) -> None:
    assert (ending.returncode, ending.killed, ending.left_over) == (0, False, ()), dyno.log()[-4000:]


@dataclass
class Sent:
    """One request of the load: when it had been sent, or had failed before; and what became of it."""

    at: float
    result: str


@dataclass
class Load:
    """Clients that each send one request after the other until there is nobody to connect to any more."""

    port: int
    sent: list[Sent] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self, new: int = 3, kept: int = 3) -> Iterator[Load]:
        """`new` clients connect for each request, `kept` use a connection for as long as the server lets them."""
        with ThreadPoolExecutor(new + kept) as pool:
            clients = [pool.submit(self._client, number >= new) for number in range(new + kept)]
            try:
                wait_for(lambda: len(self.sent) > 20 * (new + kept) or self._over.is_set(), "the load is running")
                yield self
            finally:
                for client in clients:
                    client.result(60)

    def lost(self, ending: Ending) -> list[Sent]:
        """Requests that were sent before the stop or hardly later, and got no answer."""
        return [one for one in self.sent if one.result != "answered" and one.at < ending.began + 0.02]

    def _client(self, kept: bool) -> None:
        while self._connection(kept):
            pass

    def _connection(self, kept: bool) -> bool:
        """Use one connection; False if there was none to be had."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.connect()
        except ConnectionRefusedError:
            self.sent.append(Sent(time.monotonic(), "refused"))
            return False
        except OSError as error:
            self.sent.append(Sent(time.monotonic(), repr(error)))
            return True
        with connection.sock:
            while self._request(connection, kept):
                pass
        return True

    def _request(self, connection: http.client.HTTPConnection, kept: bool) -> bool:
        """Send one request; whether the connection may be used for another."""
        at = 0.0
        try:
            connection.request("GET", "/", headers={} if kept else {"Connection": "close"})
            at = time.monotonic()
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            self.sent.append(Sent(at or time.monotonic(), repr(error)))
            return False
        self.sent.append(Sent(at, "answered" if response.status == 200 else str(response.status)))
        return kept and not response.will_close


@contextmanager
def client(dyno: Dyno, text: str) -> Iterator[socket.socket]:
    """A connection on which a text has been sent."""
    with socket.create_connection(("127.0.0.1", dyno.port), timeout=30) as connection:
        connection.sendall(text.encode())
        yield connection


def receive(connection: socket.socket) -> http.client.HTTPResponse:
    """Read one response; its `will_close` tells whether the server keeps the connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    response.read()
    return response


def receive_and_close(connection: socket.socket) -> http.client.HTTPResponse:
    with connection:
        return receive(connection)


@contextmanager
def in_flight(dyno: Dyno, path: str, count: int) -> Iterator[list[Future[tuple[int, str]]]]:
    """Requests that the application has begun to answer."""
    with ThreadPoolExecutor(count) as pool:
        answers = [pool.submit(dyno.get, path) for _ in range(count)]
        wait_for(lambda: dyno.log().count(f"begins {path}\n") >= count, f"{count} requests are in flight", 10)
        yield answers


@EVERY
def test_no_request_is_lost_at_a_stop_under_load(web: WebDyno, how: str, kind: str) -> None:
    dyno = web(PLATFORMS[how], kind)
    with Load(dyno.port).running() as load, in_flight(dyno, "/busy?1", 2) as slow:
        ending = dyno.cycle()
    results = Counter(one.result.partition("(")[0] for one in load.sent)
    late = Counter(one.result.partition("(")[0] for one in load.sent if one.at >= ending.began + 0.02)
    show("under load", how, kind, ending, f"; requests: {dict(results)}, of them after the signal: {dict(late)}")
    assert load.lost(ending) == []
    assert [answer.result()[0] for answer in slow] == [200, 200]
    assert_ordered(ending, dyno)


@EVERY
def test_an_idle_dyno_leaves_at_once_with_exit_code_0(web: WebDyno, how: str, kind: str) -> None:
    dyno = web(PLATFORMS[how], kind)
    ending = dyno.cycle()
    show("idle", how, kind, ending)
    assert_ordered(ending, dyno)


@pytest.mark.parametrize("kind", CLASSES)
def test_slow_requests_in_flight_are_finished_within_a_grace_of_3_s(web: WebDyno, kind: str) -> None:
    dyno = web(PIKU, kind, grace=3)
    with in_flight(dyno, "/slow?1.2", 2) as slow:
        ending = dyno.cycle()
    show("1.2 s in flight, a grace of 3 s", "group", kind, ending)
    assert [answer.result()[0] for answer in slow] == [200, 200]
    assert_ordered(ending, dyno)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_response_without_end_does_not_hold_up_the_stop(web: WebDyno, kind: str) -> None:
    dyno = web(PIKU, kind, grace=3)
    with client(dyno, GET.replace("/", "/stream", 1)) as stream:
        assert stream.recv(1000).startswith(b"HTTP/1.1 200")
        ending = dyno.cycle()
    show("streaming, a grace of 3 s", "group", kind, ending)
    assert_ordered(ending, dyno)


@pytest.mark.parametrize("kind", CLASSES)
def test_requests_in_the_backlog_are_served(web: WebDyno, kind: str) -> None:
    """The only worker computes for a second; meanwhile more connect, and then the dyno is stopped."""
    dyno = web(DOCKER, kind, WEB_CONCURRENCY="1", WEB_THREADS="1")
    with in_flight(dyno, "/busy?1", 1) as busy, ExitStack() as stack, ThreadPoolExecutor(10) as pool:
        clients = [stack.enter_context(client(dyno, GET)) for _ in range(10)]
        waiting = [pool.submit(receive_and_close, one) for one in clients]
        ending = dyno.cycle()
        assert [one.result().status for one in waiting] == [200] * 10
    show("a backlog of 10 behind 1 s", "pid1", kind, ending)
    assert busy[0].result()[0] == 200
    assert_ordered(ending, dyno)


@pytest.mark.parametrize("kind", ["gevent", "gthread"])
def test_idle_connections_do_not_hold_up_the_stop(web: WebDyno, kind: str) -> None:
    dyno = web(DOCKER, kind)
    with client(dyno, GET) as one, client(dyno, GET) as other:
        assert not receive(one).will_close
        assert not receive(other).will_close
        ending = dyno.cycle()
        assert one.recv(1) == other.recv(1) == b""
    show("two idle connections", "pid1", kind, ending)
    assert_ordered(ending, dyno)
    assert "ERROR" not in dyno.log(), "nothing went wrong"


def test_clients_that_send_nothing_or_half_a_request_do_not_hold_up_gevent(web: WebDyno) -> None:
    dyno = web(DOCKER, "gevent")
    half = GET[:-4]
    with client(dyno, "") as silent, client(dyno, half) as slow, client(dyno, half) as stuck:
        with ThreadPoolExecutor(1) as pool:
            cycle = pool.submit(dyno.cycle)
            assert silent.recv(1) == b""  # closed: it had its time
            slow.sendall(b"\r\n\r\n")
            assert receive(slow).will_close
            ending = cycle.result()
        assert stuck.recv(1) == b""
    show("half a request", "pid1", "gevent", ending)
    assert_ordered(ending, dyno)


@pytest.mark.parametrize("kind", CLASSES)
def test_connections_are_taken_during_the_linger_and_closed_after_one_response(web: WebDyno, kind: str) -> None:
    dyno = web(HEROKU, kind, WEB_LINGER="1")
    served = 0.0
    with client(dyno, GET) as kept, ThreadPoolExecutor(1) as pool:
        if kind == "sync":  # it keeps no connections
            assert receive_and_close(kept).will_close
        else:
            assert not receive(kept).will_close
        cycle = pool.submit(dyno.cycle)
        wait_for(lambda: "SIGTERM: stopping" in dyno.log(), "the stop has begun")
        if kind != "sync":
            kept.sendall(GET.encode())
            assert receive_and_close(kept).will_close
        with suppress(OSError):
            while not cycle.done():
                with client(dyno, GET) as new:
                    assert receive(new).status == 200
                    served = time.monotonic()
        ending = cycle.result()
    show("a linger of 1 s", "broadcast", kind, ending, f", the last request after {served - ending.began:.2f} s")
    assert served - ending.began > 0.8
    assert_ordered(ending, dyno)


def test_a_worker_replaced_just_before_the_stop_does_not_hold_it_up(web: WebDyno) -> None:
    """The replacement is stopped before it has signal handlers of its own: it takes half a second to get there."""
    dyno = web(DOCKER, "gevent", grace=30)
    master = dyno.inner("web")["pid"]
    config = dyno.root / "app" / "config" / "gunicorn.py"
    config.write_text(f"{config.read_text()}\n\n{SLOW_FORK}")
    os.kill(master, signal.SIGKILL)
    wait_for(lambda: len(workers(dyno)) == 2, "the workers of the new master answer")
    os.kill(int(workers(dyno).pop()), signal.SIGTERM)
    wait_for(lambda: dyno.log().count("a worker begins") == 3, "the worker is replaced")
    ending = dyno.cycle()
    show("a worker just replaced", "pid1", "gevent", ending)
    assert ending.seconds < 5
    assert_ordered(ending, dyno)


SLOW_FORK = """
def post_fork(_arbiter, _worker):
    import time

    print("a worker begins", flush=True)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        pass
"""


def test_a_client_with_many_requests_at_once_lets_others_through(web: WebDyno) -> None:
    dyno = web(DOCKER, "gevent", WEB_CONCURRENCY="1")
    with client(dyno, GET.replace("/", "/busy?0.003", 1) * 300) as greedy:
        assert greedy.recv(1)
        assert dyno.get("/")[0] == 200
        assert greedy.recv(1_000_000, socket.MSG_DONTWAIT).count(b"HTTP/1.1 200") < 200
