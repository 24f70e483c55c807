"""One inner process: how it is started, what state it is in, when it is started again."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

from . import drain, image
from .image import Image
from .procfile import Entry
from .settings import ROOT

# A process that lived this long (seconds) started well; a death before counts as a failed start.
STARTED_WELL = 10.0
# Pauses (seconds) before the starts that follow a death; after as many failed starts in a row, it is given up.
BACKOFF = (0.0, 1.0, 2.0, 4.0, 8.0)


class State(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Kind(StrEnum):
    PROCESS = "process"  # a line of LocalProcfile
    DATABASE = "database"  # the embedded PostgreSQL: first to start, last to stop
    IMAGE = "image"  # others are forked from it
    ONCE = "once"  # must end with 0 before the processes start


@dataclass
class Inner:
    """State of one inner process. Times are seconds of the supervisor's clock."""

    entry: Entry
    environ: Mapping[str, str]
    kind: Kind = Kind.PROCESS
    argv: list[str] | None = None
    pass_fds: tuple[int, ...] = ()
    image: Image | None = None  # what this is the process of
    source: Image | None = None  # what it is forked from
    state: State = State.STARTING
    pid: int | None = None
    returncode: int | None = None  # of a main process that is dead while others of its group live
    restarts: int = 0
    failures: int = 0
    started_at: float = 0.0
    restart_at: float | None = None
    restart_asked: bool = False
    stop_at: float = 0.0
    steps: list[drain.Step] = field(default_factory=list)
    _popen: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return self.entry.name

    def start(self, now: float) -> int:
        """Start the process in a session of its own; returns the descriptor of its output.

        Signals that the platform sends to the dyno's process group do not reach it: the drain decides.
        Raises OSError if the command can't be started.
        """
        self.restart_at = None
        self._popen = None
        reader, writer = os.pipe()
        try:
            self.pid = self._fork(writer) or self._start_image(writer) or self._spawn(writer)
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self.state, self.started_at = State.RUNNING, now
        if self.image:
            self.image.pid = self.pid
        return reader

    def _fork(self, output: int) -> int | None:
        """The pid of the process if the image that it is forked from could do so."""
        if not self.source or self.source.state is not image.State.READY:
            return None
        argv = [] if self.image else self.entry.argv(self.environ)
        with suppress(OSError):
            return self.source.fork(argv, self._environ(), output, self.image)
        return None

    def _start_image(self, output: int) -> int | None:
        return self.image.start(self._environ(), output) if self.image else None

    def _spawn(self, output: int) -> int:
        self._popen = subprocess.Popen(
            self.argv or self.entry.argv(self.environ),
            env=self._environ(),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=self.pass_fds,
        )
        return self._popen.pid

    def _environ(self) -> dict[str, str]:
        return {**self.environ, "BOILER_PROCESS": self.name}

    @property
    def through_shell(self) -> bool:
        return self.argv is None and self.entry.needs_shell

    def has_ended(self) -> bool:
        """Whether a dead main process was all of it: a shell that is stopped may leave its program at work."""
        if self.state is State.STOPPING and self.through_shell and self.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, 0)
                return False
        return True

    def died(self, returncode: int, now: float) -> None:
        """Note the end of the process, and take along what it has left in its group."""
        self.signal(signal.SIGKILL, whole_group=True)
        if self._popen is not None:
            self._popen.returncode = returncode  # the supervisor has reaped it
        if self.image:
            self.image.state = image.State.GONE
        self.pid, self.returncode, self.steps = None, None, []
        if self.state is State.STOPPING or self.kind in (Kind.ONCE, Kind.IMAGE):
            self.state = State.STOPPED
        else:
            self.failures = 0 if now - self.started_at >= STARTED_WELL else self.failures + 1
            self.state = State.BACKOFF
            self.restarts += 1
            self.restart_at = now + BACKOFF[max(0, min(self.failures, len(BACKOFF)) - 1)]

    @property
    def given_up(self) -> bool:
        """Whether it has failed to start as often as there are pauses."""
        return self.failures > len(BACKOFF)

    def stop(self, steps: list[drain.Step], now: float) -> None:
        """Begin to stop it; what is already stopping goes on as it was."""
        self.restart_at = None
        if self.pid is None:
            self.state = State.STOPPED
        elif self.state is not State.STOPPING:
            self.state, self.stop_at, self.steps = State.STOPPING, now, steps

    def next_time(self) -> float | None:
        """When there is something to do for it, or None."""
        if self.steps:
            return self.stop_at + self.steps[0].after
        return self.restart_at

    def signal_due(self, now: float) -> None:
        """Send the signals of the drain whose time has come."""
        while self.steps and self.stop_at + self.steps[0].after <= now:
            step = self.steps.pop(0)
            self.signal(step.signal, whole_group=step.whole_group)

    def signal(self, number: signal.Signals, *, whole_group: bool) -> None:
        """Signal its main process, or its whole group."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                (os.killpg if whole_group else os.kill)(self.pid, number)
