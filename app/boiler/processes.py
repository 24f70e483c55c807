"""What the kernel tells of processes: who is whose child, memory, titles. Linux's /proc."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
KILL_WAIT = 2.0  # seconds; a SIGKILL takes effect at once, but for a process that waits on a broken disk


def become_subreaper() -> None:
    """Make this process the parent of every orphan among its descendants (prctl(2)), so that none escapes."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def stat(pid: str) -> tuple[str, int] | None:
    """A process's state letter and its parent's pid; None if it is gone."""
    try:
        text = (PROC / pid / "stat").read_text()
    except OSError:
        return None
    # The command's name stands in brackets and may hold anything, brackets and spaces too.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[1])


def started(pid: int) -> int:
    """When a process was started, in clock ticks from the machine's start (proc_pid_stat(5)). 0 if it is gone."""
    try:
        return int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def children() -> dict[int, list[int]]:
    """The pids of the children of every process, zombies left out."""
    found: dict[int, list[int]] = {}
    with suppress(OSError):  # no /proc on macOS, and some hosts keep it from ordinary users
        for name in os.listdir(PROC):  # noqa: PTH208 (a Path for each of them is four times slower)
            if name.isdecimal() and (found_stat := stat(name)) and found_stat[0] != "Z":
                found.setdefault(found_stat[1], []).append(int(name))
    return found


def descendants(pid: int, table: dict[int, list[int]]) -> list[int]:
    """All that stem from `pid`, by a table of children()."""
    found = []
    waiting = list(table.get(pid, []))
    while waiting:
        child = waiting.pop()
        found.append(child)
        waiting += table.get(child, [])
    return sorted(found)


def memory(pid: int) -> int:
    """Proportional set size in bytes: shared pages count in parts, so that sums are true. 0 if unknown."""
    with suppress(OSError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def resident(pid: int) -> int:
    """Resident set size in bytes, shared pages in full. 0 if unknown."""
    with suppress(OSError):
        return int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def title(pid: int) -> str:
    """The command line as `ps` shows it."""
    with suppress(OSError):
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def kill_descendants(groups: Iterable[int] = ()) -> None:
    """SIGKILL everything that stems from this process and reap it, until nothing is left.

    This process must be a subreaper: the children of a killed process then become its own, and are
    found in the next round, wherever they have moved their session or group to. `groups` are process
    groups to kill first: where /proc can't be read, they are all that can be found.
    """
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    deadline = time.monotonic() + KILL_WAIT
    while time.monotonic() < deadline:
        for pid in children().get(os.getpid(), []):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)  # no blocking wait: an orphan may arrive that was not there to be killed
