"""The dyno's first process: it passes signals on and sees to it that nothing outlives the dyno.

It is the parent of the supervisor and does so little that nothing can bring it down but a SIGKILL.
Whichever of the two is killed, the other notices at once and takes everything along.
"""

from __future__ import annotations

import mmap
import os
import signal
import traceback
from collections.abc import Callable

from . import processes
from .supervisor import STOP_SIGNALS
from .titles import set_title


class Groups:
    """The process groups of the inner processes: the supervisor writes them, init reads them if it must."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 1 << 16)  # anonymous memory that a fork shares

    def write(self, pids: list[int]) -> None:
        text = b" ".join(b"%d" % pid for pid in pids)
        self._shared[: len(text) + 1] = text + b"\n"

    def read(self) -> list[int]:
        self._shared.seek(0)
        return [int(pid) for pid in self._shared.readline().strip(b"\0\n").split()]


def run(supervise: Callable[[int, Groups], int]) -> int:
    """Fork a process that calls `supervise(pipe, groups)`, wait for its end, and return its exit code.

    The pipe reads as closed when this process is gone. Exit code 1 if the supervisor was killed.
    """
    processes.become_subreaper()
    groups = Groups()
    reader, writer = os.pipe()
    # Blocked for good and taken by sigwait(): a handler would be reset to the default while the interpreter ends,
    # and one more SIGTERM then become the exit code.
    awaited = {*STOP_SIGNALS, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    supervisor = os.fork()
    if not supervisor:
        os.close(writer)
        os.setsid()  # Piku kills the whole group at the end of its grace: one of the two must be left to clean up
        processes.become_subreaper()
        set_title("supervisor")
        code = 1
        try:
            code = supervise(reader, groups)
        except Exception:  # noqa: BLE001 (whatever it is: this copy of the caller's stack must not go on)
            traceback.print_exc()
        os._exit(code)
    os.close(reader)
    set_title("init")

    while (status := _reap(supervisor)) is None:
        number = signal.sigwait(awaited)
        if number != signal.SIGCHLD:
            os.kill(supervisor, number)  # not reaped yet, so it is there, if only as a zombie
    processes.kill_descendants(groups.read())
    return 1 if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _reap(supervisor: int) -> int | None:
    """Reap everything that has ended, orphans that came to this subreaper too; the supervisor's status if it has."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == supervisor:
            return status
        if not pid:
            return None
