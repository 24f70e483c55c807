"""The supervisor: one loop that starts, watches, restarts and stops the inner processes."""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import drain, image, processes
from .inner import Inner, Kind, State
from .output import LineBuffer, Output
from .status import Server

# How often (seconds) a starting database is asked whether it is ready; nothing else is polled.
READY_INTERVAL = 0.05
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Supervisor:
    """Runs inner processes until it is told to stop or one of them keeps failing.

    `inners` are started in their order: the database is waited for until `database_ready` says so, an image, by
    what is forked from it, until it has loaded, a process of kind ONCE until it has ended. A RuntimeError from
    `database_ready` ends the dyno. `grace` is in seconds. `only` names the lines of LocalProcfile that were asked
    for, if not all. `parent_pipe` is a descriptor that reads as closed when the init process is gone; `note_groups`
    is told the process groups there are, at every change.
    """

    def __init__(  # noqa: PLR0913 (its parts are passed in, so that tests need no platform)
        self,
        inners: list[Inner],
        *,
        output: Output,
        socket_path: Path,
        grace: float,
        parent_pipe: int,
        only: Sequence[str] = (),
        note_groups: Callable[[list[int]], None] = lambda _: None,
        database_ready: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inners = inners
        self.grace = grace
        self.only = list(only)
        self.state = State.STARTING
        self.exit_code = 0
        self._output = output
        self._clock = clock
        self._began = clock()
        self._note_groups = note_groups
        self._database_ready = database_ready
        self._to_start = deque(inners)
        self._drain_began = 0.0
        self._next_check: float | None = None
        self._stop_asked = ""
        self._pipes: dict[int, tuple[str, LineBuffer]] = {}
        self._reading = True
        self._selector = selectors.DefaultSelector()
        self._selector.register(parent_pipe, selectors.EVENT_READ, self._init_is_gone)
        self._wake_up_on_signals()
        self._server = Server(socket_path, self._selector, self._answer)

    def run(self) -> int:
        """Supervise until everything has stopped; returns the dyno's exit code."""
        while True:
            now = self._clock()
            self._reap(now)
            if self._stop_asked:
                self.stop(self._stop_asked)
            self._start_next(now)
            self._act_on_time(now)
            if self.state is State.STOPPING and self._all_stopped(now):
                break
            self._attend_output()
            for key, _ in self._selector.select(self._timeout()):
                key.data()
        self._server.close()
        processes.kill_descendants()
        for fd in list(self._pipes):
            while self._read(fd):
                pass
        self._say(f"stopped, exit code {self.exit_code}")
        self._output.flush(2.0)
        return self.exit_code

    def stop(self, reason: str, exit_code: int = 0) -> None:
        """Begin the drain, once: all are asked to stop, the database last."""
        if self.state is State.STOPPING:
            return
        self.state, self.exit_code = State.STOPPING, exit_code
        self._drain_began = now = self._clock()
        self._to_start.clear()
        self._next_check = None
        self._say(f"{reason}: stopping within {self.grace:g} s")
        for inner in self.inners:
            if inner.kind is not Kind.DATABASE:
                inner.stop(self._steps(inner), now)

    # --- signals and children ---

    def _wake_up_on_signals(self) -> None:
        """Let signals end the wait in select(): each writes a byte into a pipe."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, self._note_stop_signal)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # The init process blocks these around the fork, so that none is lost before this point.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [*STOP_SIGNALS, signal.SIGCHLD])
        self._selector.register(reader, selectors.EVENT_READ, lambda: os.read(reader, 4096))

    def _note_stop_signal(self, number: int, _frame: Any) -> None:
        self._stop_asked = self._stop_asked or signal.Signals(number).name

    def _init_is_gone(self) -> None:
        """The init process was killed: nobody would stop what goes on, so nothing may."""
        processes.kill_descendants(self._groups())
        os._exit(1)

    def _groups(self) -> list[int]:
        return [inner.pid for inner in self.inners if inner.pid is not None]

    def _reap(self, now: float) -> None:
        """Take note of every process that has ended, orphans that came to this subreaper included."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                for inner in self.inners:
                    if inner.pid == pid:
                        inner.returncode = os.waitstatus_to_exitcode(status)
        for inner in self.inners:
            if inner.returncode is not None and inner.has_ended():
                self._ended(inner, inner.returncode, now)

    def _ended(self, inner: Inner, returncode: int, now: float) -> None:
        stopping = inner.state is State.STOPPING
        inner.died(returncode, now)
        self._note_groups(self._groups())
        how = f"by {signal.Signals(-returncode).name}" if returncode < 0 else f"with exit code {returncode}"
        if inner.kind is Kind.ONCE and returncode and not stopping:
            self.stop(f"{inner.name} ended {how}, see its lines above", exit_code=1)
        elif inner.kind is Kind.IMAGE and not stopping:
            self._say(f"{inner.name} ended {how}: what it would have forked is started by itself")
        elif inner.restart_asked and self.state is not State.STOPPING:
            inner.restart_asked = False
            self._start(inner, now)
        elif inner.state is State.BACKOFF:
            if self.state is State.STOPPING:
                inner.stop([], now)
            elif inner.given_up:
                times = f"{inner.failures} times in a row"
                inner.stop([], now)
                self.stop(f"{inner.name} ended {how}, {times}: giving up", exit_code=1)
            else:
                pause = (inner.restart_at or now) - now
                self._say(f"{inner.name} ended {how}: starting it again" + (f" in {pause:g} s" if pause else ""))

    # --- starting ---

    def _start_next(self, now: float) -> None:
        """Start what is next in order, as far as what it needs is there."""
        self._next_check = None
        while self._to_start:
            inner = self._to_start[0]
            if inner.source and inner.source.state is image.State.LOADING:
                return
            if inner.state is State.STARTING:
                self._start(inner, now)
                self._await_image(inner)
            if inner.kind is Kind.ONCE and inner.state is not State.STOPPED:
                return
            if inner.kind is Kind.DATABASE and not (inner.state is State.RUNNING and self._is_ready()):
                self._next_check = now + READY_INTERVAL
                return
            if self._to_start:
                self._to_start.popleft()
        if self.state is State.STARTING:
            self.state = State.RUNNING

    def _await_image(self, inner: Inner) -> None:
        if not inner.image:
            return
        waited = inner.image
        waited.other_end.close()

        def loaded() -> None:
            self._selector.unregister(waited.socket)
            waited.loaded()

        self._selector.register(waited.socket, selectors.EVENT_READ, loaded)

    def _is_ready(self) -> bool:
        try:
            return self._database_ready()
        except RuntimeError as error:
            self.stop(str(error), exit_code=1)
            return False

    def _start(self, inner: Inner, now: float) -> None:
        try:
            fd = inner.start(now)
        except OSError as error:
            self._say(f"{inner.name} can't be started: {error}")
            inner.started_at = now
            inner.died(127, now)
            if inner.given_up or inner.kind is Kind.ONCE:
                self.stop(f"{inner.name} can't be started: giving up", exit_code=1)
            return
        self._note_groups(self._groups())
        os.set_blocking(fd, False)
        self._pipes[fd] = (inner.name, LineBuffer())
        if self._reading:
            self._selector.register(fd, selectors.EVENT_READ, lambda: self._read(fd))
        if inner.kind not in (Kind.ONCE, Kind.IMAGE):
            self._say(f"{inner.name} started, pid {inner.pid}")

    # --- time ---

    def _act_on_time(self, now: float) -> None:
        for inner in self.inners:
            inner.signal_due(now)
            if inner.restart_at is not None and inner.restart_at <= now:
                self._start(inner, now)

    def _timeout(self) -> float | None:
        """Seconds until something is due; None for a wait without end."""
        times = [self._next_check, *(inner.next_time() for inner in self.inners)]
        due = [time for time in times if time is not None]
        return max(0.0, min(due) - self._clock()) if due else None

    def _steps(self, inner: Inner) -> list[drain.Step]:
        return drain.stop_steps(self.grace, through_shell=inner.through_shell)

    def _all_stopped(self, now: float) -> bool:
        """Whether all have stopped; the database is asked to when the others have."""
        users = [inner for inner in self.inners if inner.kind is not Kind.DATABASE]
        databases = [inner for inner in self.inners if inner.kind is Kind.DATABASE]
        if any(inner.pid is not None for inner in users):
            return False
        for database in databases:
            if database.state is not State.STOPPING:
                database.stop(drain.database_steps(self.grace, now - self._drain_began), now)
                database.signal_due(now)
        return all(database.pid is None for database in databases)

    # --- output ---

    def _say(self, text: str) -> None:
        self._output.line("boiler", text.encode())

    def _read(self, fd: int) -> bool:
        """Pass on what a process has written; forget its pipe at the end. False if there is no more now."""
        name, buffer = self._pipes[fd]
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return False
        for line in buffer.feed(data) if data else buffer.finish():
            self._output.line(name, line)
        if not data:
            del self._pipes[fd]
            if self._reading:
                self._selector.unregister(fd)
            os.close(fd)
        return bool(data)

    def _attend_output(self) -> None:
        """Write when the log takes it; while it takes nothing, read no more from the processes."""
        writable = self._output.fd in self._selector.get_map()
        if self._output.size and not writable:
            try:
                self._selector.register(self._output.fd, selectors.EVENT_WRITE, self._output.write_some)
            except PermissionError:  # a regular file: always ready
                self._output.flush(1.0)
        elif writable and not self._output.size:
            self._selector.unregister(self._output.fd)
        if self._reading and self._output.full:
            self._reading = False
            for fd in self._pipes:
                self._selector.unregister(fd)
        elif not self._reading and not self._output.full:
            self._reading = True
            for fd in self._pipes:
                self._selector.register(fd, selectors.EVENT_READ, lambda fd=fd: self._read(fd))

    # --- status ---

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        command = request.get("command")
        if command == "status":
            return self.status()
        if command == "states":  # what /healthz asks all the time: nothing is read for it
            return {"processes": [{"name": one.name, "state": one.state} for one in self._shown()]}
        if command == "environment":  # to its own user, who could read it in /proc as well
            return {"environment": dict(os.environ)}
        if command == "stop":
            self.stop("boil stop")
            return {"pid": os.getpid(), "grace": self.grace}
        if command == "restart":
            return self._restart(str(request.get("name")))
        return {"error": f"no such command: {command!r}"}

    def _restart(self, name: str) -> dict[str, Any]:
        running = {inner.name: inner for inner in self.inners if inner.pid is not None}
        if self.state is not State.RUNNING or name not in running:
            return {"error": f"{name!r} can't be restarted now; running are: {', '.join(running) or 'none'}"}
        inner = running[name]
        if inner.kind is not Kind.PROCESS:
            return {"error": f"{name!r} is not from LocalProcfile: restart the dyno instead"}
        self._say(f"{name}: restarting as asked")
        inner.restart_asked = True
        inner.stop(self._steps(inner), self._clock())
        return {"pid": inner.pid}

    def status(self) -> dict[str, Any]:
        """What runs in the dyno: memory in bytes, times in seconds."""
        now = self._clock()
        table = processes.children()
        images = [inner for inner in self.inners if inner.kind is Kind.IMAGE and inner.pid]
        return {
            "boiler": {
                "pid": os.getpid(),
                "init_pid": os.getppid(),
                "state": self.state,
                "uptime": round(now - self._began, 3),
                "grace": self.grace,
                "only": self.only,
                "memory": processes.memory(os.getpid()) + processes.memory(os.getppid()),
            },
            "images": [{"name": one.name, "pid": one.pid, "memory": processes.memory(one.pid)} for one in images],
            "processes": [self._status_of(inner, now, table) for inner in self._shown()],
        }

    def _shown(self) -> list[Inner]:
        return [inner for inner in self.inners if inner.kind in (Kind.PROCESS, Kind.DATABASE)]

    def _status_of(self, inner: Inner, now: float, table: dict[int, list[int]]) -> dict[str, Any]:
        below = processes.descendants(inner.pid, table) if inner.pid else []
        children = [{"pid": pid, "title": processes.title(pid), "memory": processes.memory(pid)} for pid in below]
        own = processes.memory(inner.pid) if inner.pid else 0
        return {
            "name": inner.name,
            "command": inner.entry.command,
            "pid": inner.pid,
            "title": processes.title(inner.pid) if inner.pid else "",
            "state": inner.state,
            "restarts": inner.restarts,
            "uptime": round(now - inner.started_at, 3) if inner.pid else 0.0,
            "memory": own + sum(child["memory"] for child in children),
            "children": children,
        }
