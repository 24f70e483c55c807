"""gunicorn's workers, made to stop at once and without losing a request.

What gunicorn 27.0 does by itself at SIGTERM (read in its source): no worker class takes the connections that
wait in the kernel's backlog, so their clients get a reset; the gevent worker looks once a second whether it is to
stop, and once a second whether it is done, and waits for idle connections until the grace is over; all of them
may leave while the master still has the listening socket open, which then takes connections that nobody serves.

What happens here: for a moment (LISTEN_ON, or WEB_LINGER if that is longer) all goes on, only that every
response says `Connection: close`; then the backlog is taken, the listening socket closed, idle connections are
closed, and the process leaves when the last request is done, or when its time is up.

Two classes are weaker in what remains gunicorn's own:

- gthread and sync can't break off a request: the master kills the worker at the end of `graceful_timeout`. After
  `Connection: close` they wait up to 2 s for the client to close its side.
- A client that has connected and sends nothing is waited for: by gthread for 5 s (DEFAULT_WORKER_DATA_TIMEOUT), by
  sync until the time is up.
- sync serves one request at a time, the backlog too, and knows no keep-alive: every response closes its connection.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import gevent
import gevent.socket
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.workers import ggevent, gthread, sync

from boiler.settings import get

from .stopping import at_stop

# All times are seconds.
# Connections are taken at least this long after SIGTERM: where every process of the dyno gets it at once, the
# master may have it last, and until then it holds the listening socket open; and a client whose handshake is
# under way believes that it is connected.
LISTEN_ON = 0.05
# An idle connection is closed when nothing has come for this long: a request may be on its way.
QUIET = 0.1
# A client that has begun to send a request, and then pauses for this long, is not waited for.
PAUSE = 2.0
# How often a stopping gevent worker with open connections looks for idle ones.
LOOK = 0.05
# A worker is gone this long before the master would kill it, at the end of `graceful_timeout`.
AHEAD = 0.3

# Instead of 2 s.
gthread.STOP_KEEPALIVE_LINGER = QUIET


class QuickExit:
    """Ends a process without taking its interpreter apart, which takes 0.2 s with Django and Celery loaded.

    Made before the application is loaded, it is the last of the atexit functions to be called. Only after an
    ordered stop, when `wanted` is set: it makes the exit code 0.
    """

    def __init__(self) -> None:
        self.wanted = False
        atexit.register(self._leave)

    def _leave(self) -> None:
        if self.wanted:
            logging.shutdown()
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(0)


quick_exit = QuickExit()


@dataclass(frozen=True)
class Stopping:
    """When a stopping worker closes the listening socket, and when it gives up; on time.monotonic()'s clock."""

    closes: float
    ends: float

    @classmethod
    def now(cls, graceful_timeout: float) -> Stopping:
        """From now on; at most half of the time goes into the linger, the rest is for what came in by then."""
        began = time.monotonic()
        listens = min(max(LISTEN_ON, get("WEB_LINGER")), graceful_timeout / 2)
        return cls(began + listens, began + graceful_timeout - AHEAD)


def left(moment: float) -> float:
    return max(0.0, moment - time.monotonic())


@dataclass(frozen=True)
class Address:
    """Where a connection came in: the listening socket may be closed before its handler asks."""

    name: Any

    def getsockname(self) -> Any:
        return self.name


class Connection(gevent.socket.socket):
    """A client's socket that knows whether a request is being answered on it."""

    def __init__(self, accepted: gevent.socket.socket) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self.answering = False
        self.begun = False
        self.since = time.monotonic()

    def recv(self, *args: Any) -> bytes:
        data = super().recv(*args)
        self.begun, self.since = True, time.monotonic()
        return data

    def answered(self) -> None:
        self.answering = self.begun = False
        self.since = time.monotonic()

    def _has_unread(self) -> bool:
        """Whether the kernel has something of the client that the handler has not come to read yet."""
        with suppress(OSError):  # nothing there, or the client is gone
            return bool(self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        return False

    def close_if_idle(self) -> None:
        """Let its handler see the end of the stream.

        What is in the kernel's buffer would still be read, but not what follows: on a busy machine a handler comes
        late to a request whose body arrives in parts, which is then not idle.
        """
        if not self.answering and self._has_unread():
            self.begun, self.since = True, time.monotonic()
        pause = PAUSE if self.begun else QUIET
        if not self.answering and time.monotonic() - self.since >= pause:
            with suppress(OSError):
                # gevent's shutdown() would end the handler's wait with an error, which gunicorn writes to the log.
                self._sock.shutdown(socket.SHUT_RD)


class GeventWorker(ggevent.GeventWorker):
    """gunicorn's gevent worker with a stop of its own, and fair to all its connections.

    TLS is the platform's router's.
    """

    def init_process(self) -> None:
        self._stop_asked = Event()
        self._connections: set[Connection] = set()
        super().init_process()

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        self._stop_asked.set()

    def run(self) -> None:
        self._pool = Pool(self.worker_connections)
        servers = [self._serve(listener) for listener in self.sockets]
        while self.alive:
            self.notify()
            self._stop_asked.wait(1.0)
        stopping = Stopping.now(self.cfg.graceful_timeout)
        for leave in at_stop:
            leave()
        gevent.sleep(left(stopping.closes))
        for server in servers:
            self._take_backlog(server, stopping.ends)
            server.close()
        self._finish(stopping.ends)
        quick_exit.wanted = True

    def _serve(self, listener: gevent.socket.socket) -> StreamServer:
        listener.setblocking(1)
        address = Address(listener.getsockname())
        server = StreamServer(listener, handle=partial(self.handle, address), spawn=self._pool)
        if self.cfg.workers > 1:
            server.max_accept = 1  # leave the next to the other workers
        server.start()
        return server

    def _take_backlog(self, server: StreamServer, ends: float) -> None:
        server.stop_accepting()
        while self._pool.wait_available(timeout=left(ends)) and (accepted := server.do_read()):
            server.do_handle(*accepted)

    def _finish(self, ends: float) -> None:
        """Wait for the requests in flight; close the connections that have none."""
        while not self._pool.join(timeout=min(LOOK, left(ends))):
            self.notify()
            if not left(ends):
                self.log.warning("time is up: %d requests are broken off", len(self._connections))
                self._pool.kill(timeout=AHEAD / 3)
                return
            for connection in list(self._connections):
                connection.close_if_idle()

    def handle(self, listener: Address, client: gevent.socket.socket, addr: Any) -> None:
        connection = Connection(client)
        self._connections.add(connection)
        try:
            super().handle(listener, connection, addr)
        finally:
            self._connections.discard(connection)

    def handle_request(self, listener_name: Any, req: Any, sock: Connection, addr: Any) -> Any:
        sock.answering = True
        try:
            answer = super().handle_request(listener_name, req, sock, addr)
        finally:
            sock.answered()
        # A client whose next request is there already would keep all others waiting: measured at 32 of them,
        # a p99 of 12-14 ms instead of 700, for 5 % fewer requests a second.
        gevent.sleep(0)
        return answer


class ThreadWorker(gthread.ThreadWorker):
    """gunicorn's gthread worker that takes what waits in the backlog before it closes."""

    def run(self) -> None:
        super().run()
        quick_exit.wanted = True

    def set_accept_enabled(self, enabled: bool) -> None:
        if self.alive or enabled or not self.sockets:
            super().set_accept_enabled(enabled)
            return
        stopping = Stopping.now(self.cfg.graceful_timeout)
        while wait := left(stopping.closes):
            self.notify()
            self.wait_for_and_dispatch_events(wait)
        super().set_accept_enabled(enabled)
        for listener in self.sockets:
            self._take_backlog(listener)
            listener.close()
        self.sockets = []

    def _take_backlog(self, listener: Any) -> None:
        before = -1
        while self.nr_conns > before:
            before = self.nr_conns
            self.accept(listener)


class SyncWorker(sync.SyncWorker):
    """gunicorn's sync worker that serves what waits in the backlog before it leaves."""

    def run(self) -> None:
        super().run()
        stopping = Stopping.now(self.cfg.graceful_timeout)
        while wait := left(stopping.closes):
            self.wait(wait)
            for listener in self.sockets:
                with suppress(BlockingIOError):
                    self.accept(listener)
        # All of them first: while they are served more would come, without end.
        waiting = [one for listener in self.sockets for one in self._take_backlog(listener)]
        for address, client, peer in waiting:
            if left(stopping.ends):
                self.notify()
                self.handle(address, client, peer)
        quick_exit.wanted = True

    def _take_backlog(self, listener: Any) -> list[tuple[Address, socket.socket, Any]]:
        address = Address(listener.getsockname())
        taken = []
        with suppress(BlockingIOError):
            while True:
                client, peer = listener.accept()
                client.setblocking(True)
                taken.append((address, client, peer))
        listener.close()
        return taken
