"""The dyno double: runs any command as a platform runs a dyno, and stops it as that platform does.

How platforms stop a dyno (Heroku's and Docker's documentation; Piku and uWSGI as observed):

- broadcast (Heroku): SIGTERM to every process at once, possibly several times; SIGKILL to all after 30 s.
- pid1 (Docker, Dokku, Cloud Run): SIGTERM to the first process; SIGKILL to all after 30 or 10 s.
- group (Piku): SIGTERM to the first process's group every second; SIGKILL to that group after 3 s. What has
  left the group survives.
"""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO

from boiler import processes
from tests.wait import wait_for

# Seconds between two SIGTERMs of a platform that sends several, and how many Heroku sends at most.
TERM_INTERVAL = 1.0
BROADCASTS = 3
# Seconds within which the kernel ends what got SIGKILL, on a busy machine too.
KILL_TIME = 10.0
COOKIE = "DYNO_DOUBLE"


class Stop(StrEnum):
    BROADCAST = "broadcast"
    PID1 = "pid1"
    GROUP = "group"


@dataclass(frozen=True)
class Platform:
    """How a platform stops a dyno, how long it waits (seconds), and the variables that it sets beside PORT."""

    stop: Stop
    grace: float
    environ: Mapping[str, str] = field(default_factory=dict)


HEROKU = Platform(Stop.BROADCAST, 30, {"DYNO": "web.1"})
DOKKU = Platform(Stop.PID1, 30, {"DYNO": "web.1"})
DOCKER = Platform(Stop.PID1, 10)
PIKU = Platform(Stop.GROUP, 3)


@dataclass(frozen=True)
class Limits:
    """What a dyno may use: memory in bytes and CPUs; 0 for no limit."""

    memory: int = 0
    cpus: float = 0


@dataclass(frozen=True)
class Ending:
    """How a stop went.

    `returncode` is the first process's exit code, negative for the signal that ended it. `began` is the time
    of the first signal on time.monotonic()'s clock, `seconds` the time from it to the first process's end or to
    the end of the grace. `killed` tells that the grace was not enough, `left_over` what else was alive then:
    "PID TITLE" of each; on Piku, what the SIGKILL did not reach.
    """

    returncode: int
    began: float
    seconds: float
    killed: bool
    left_over: tuple[str, ...]


class Container:
    """One command, run and stopped as `platform` does it. `process` is its first process."""

    def __init__(
        self, process: subprocess.Popen[bytes], platform: Platform, tracker: Cgroup | Descent | None = None
    ) -> None:
        self.process = process
        self.platform = platform
        self._tracker = tracker or Descent(process.pid)
        self._pidfd = os.pidfd_open(process.pid)

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        platform: Platform,
        *,
        port: int,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log: IO[bytes] | int = subprocess.DEVNULL,
        limits: Limits | None = None,
    ) -> Container:
        """Start a command, its output going to `log`; `environ` (this process's if None) wins over the platform's."""
        limits = limits or Limits()
        cgroup = Cgroup.make(limits)
        if limits != Limits() and not (cgroup and cgroup.limited):
            warnings.warn(f"no cgroup to be had: the dyno runs without {limits}", stacklevel=2)
        cookie = os.urandom(8).hex()
        if not cgroup:
            processes.become_subreaper()
        process = subprocess.Popen(
            [*(cgroup.entrance() if cgroup else []), *command],
            env={"PORT": str(port), **platform.environ, **(os.environ if environ is None else environ), COOKIE: cookie},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # as in a container, and as uWSGI does it on Piku
        )
        return cls(process, platform, cgroup or Descent(process.pid, cookie))

    @property
    def limited(self) -> bool:
        """Whether the kernel keeps the limits that were asked for."""
        return self._tracker.limited

    def pids(self) -> set[int]:
        """Every process of the dyno, zombies left out."""
        return self._tracker.pids()

    def wait(self, seconds: float) -> bool:
        """Whether the first process has ended, now or within so many seconds."""
        if self.process.poll() is None:
            ended = select.poll()
            ended.register(self._pidfd, select.POLLIN)
            ended.poll(max(0.0, seconds) * 1000)
        return self.process.poll() is not None

    def stop(self) -> Ending:
        """Stop the dyno as the platform does. Only Piku leaves alive what is left over."""
        began = time.monotonic()
        for number in range(self._rounds()):
            if self.wait(began + number * TERM_INTERVAL - time.monotonic()):
                break
            self._terminate()
        killed = not self.wait(began + self.platform.grace - time.monotonic())
        seconds = time.monotonic() - began
        others = self.pids() - {self.process.pid}
        if killed and self.platform.stop is Stop.GROUP:
            others -= self._kill_group()
        left_over = tuple(f"{pid} {processes.title(pid)}" for pid in sorted(others))
        if self.platform.stop is not Stop.GROUP:
            self.close()
        assert self.wait(KILL_TIME), "SIGKILL did not end the first process"
        return Ending(self.process.returncode, began, seconds, killed, left_over)

    def kill(self) -> None:
        """SIGKILL to every process of the dyno, until none is left."""

        def none_left() -> bool:
            left = self.pids()
            _signal(left, signal.SIGKILL)
            return not left

        wait_for(none_left, "every process of the dyno has ended", KILL_TIME)
        self.wait(KILL_TIME)

    def close(self) -> None:
        """End what is left and give back what the dyno took; may be called again."""
        self.kill()
        self._tracker.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _rounds(self) -> int:
        """How often the platform asks."""
        most = {Stop.BROADCAST: BROADCASTS, Stop.PID1: 1, Stop.GROUP: math.inf}[self.platform.stop]
        return int(min(most, math.ceil(self.platform.grace / TERM_INTERVAL)))

    def _terminate(self) -> None:
        if self.platform.stop is Stop.BROADCAST:
            _signal(self.pids(), signal.SIGTERM)
        elif self.platform.stop is Stop.PID1:
            self.process.send_signal(signal.SIGTERM)
        else:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)

    def _kill_group(self) -> set[int]:
        """SIGKILL to the first process's group; returns who was in it, when all of them have ended."""
        group = {pid for pid in self.pids() if _group(pid) == self.process.pid}
        os.killpg(self.process.pid, signal.SIGKILL)
        wait_for(lambda: not group & self.pids(), "the group has ended", KILL_TIME)
        return group


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _group(pid: int) -> int:
    with suppress(ProcessLookupError):
        return os.getpgid(pid)
    return 0


class Cgroup:
    """Control groups for one dyno, versions 1 and 2 (cgroups(7)).

    Nothing that a process does leads out of its group, so the group's list of processes is exact.
    """

    def __init__(self, folders: list[Path], *, limited: bool) -> None:
        self.limited = limited
        self._folders = folders

    @classmethod
    def make(cls, limits: Limits) -> Cgroup | None:
        """New ones below this process's own, or None where that is not allowed."""
        own = _own_cgroups()
        wanted = [controller for controller, limit in (("memory", limits.memory), ("cpu", limits.cpus)) if limit]
        version_1 = [controller for controller in wanted if controller in own]
        if "" in own:
            own[""] = _parent_in_version_2(own[""], set(wanted) - set(version_1))
        to_list = [hierarchy for hierarchy in ("", "memory") if hierarchy in own][:1]
        name = f"dyno-double-{os.urandom(4).hex()}"
        folders: dict[str, Path] = {}
        for hierarchy in dict.fromkeys(version_1 + to_list):
            with suppress(OSError):
                (own[hierarchy] / name).mkdir()
                folders[hierarchy] = own[hierarchy] / name
        if not folders:
            return None
        done = [_limit(folders, controller, limits) for controller in wanted]
        cgroup = cls(list(folders.values()), limited=all(done))
        # To make a group and to enter it are two permissions.
        if subprocess.run([*cgroup.entrance(), "true"], stderr=subprocess.DEVNULL, check=False).returncode:
            cgroup.close()
            return None
        return cgroup

    def entrance(self) -> list[str]:
        """The words before a command that make its process enter the group and then become the command."""
        files = [str(folder / "cgroup.procs") for folder in self._folders]
        enter = 'n=$1; shift; while [ $n -gt 0 ]; do echo 0 >"$1" || exit 1; shift; n=$((n - 1)); done; exec "$@"'
        return ["/bin/sh", "-c", enter, "enter", str(len(files)), *files]

    def pids(self) -> set[int]:
        try:
            listed = (self._folders[0] / "cgroup.procs").read_text().split()
        except FileNotFoundError:  # closed
            return set()
        return alive({int(pid) for pid in listed})

    def close(self) -> None:
        for folder in self._folders:
            wait_for(lambda folder=folder: _is_removed(folder), f"{folder} is empty", KILL_TIME)


def _is_removed(folder: Path) -> bool:
    with suppress(OSError):
        folder.rmdir()
    return not folder.exists()


def _own_cgroups() -> dict[str, Path]:
    """This process's control groups: of version 2 by "", of version 1 by each controller's name."""
    paths: dict[str, str] = {}
    with suppress(FileNotFoundError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            paths |= dict.fromkeys(controllers.split(","), path.lstrip("/"))
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, _, what = line.partition(" - ")
        point, (kind, _, options) = Path(place.split()[4]), what.split(maxsplit=2)
        names = {"cgroup2": [""], "cgroup": options.split(",")}.get(kind, [])
        for name in set(names) & paths.keys():
            # In a container the path may be the host's, of which only this group itself is mounted.
            found[name] = point / paths[name] if (point / paths[name]).is_dir() else point
    return found


def _parent_in_version_2(own: Path, controllers: set[str]) -> Path:
    """The nearest group from our own upwards whose children may be limited so; our own if none may.

    Our own may not as long as we are in it ("no internal processes", cgroups(7)).
    """
    for folder in (own, *own.parents):
        try:
            enabled = (folder / "cgroup.subtree_control").read_text().split()
        except OSError:
            break
        if controllers <= set(enabled):
            return folder
    return own


def _limit(folders: Mapping[str, Path], controller: str, limits: Limits) -> bool:
    """Set one limit, by version 1 where that has the controller; whether it was possible."""
    period = 100_000  # microseconds
    quota = int(limits.cpus * period)
    files = {
        (1, "memory"): {"memory.limit_in_bytes": limits.memory, "memory.memsw.limit_in_bytes": limits.memory},
        (2, "memory"): {"memory.max": limits.memory, "memory.swap.max": 0},
        (1, "cpu"): {"cpu.cfs_period_us": period, "cpu.cfs_quota_us": quota},
        (2, "cpu"): {"cpu.max": f"{quota} {period}"},
    }
    version = 1 if controller in folders else 2
    folder = folders.get(controller) or folders.get("")
    if folder is None:
        return False
    try:
        for number, (name, value) in enumerate(files[version, controller].items()):
            if number == 0 or (folder / name).exists():  # a kernel may not account for swap
                (folder / name).write_text(str(value))
    except OSError:
        return False
    return True


class Descent:
    """Knows a dyno's processes by their descent, where there is no control group.

    The starting process has become a subreaper, so an orphan becomes its child; it is known by a cookie in
    its environment or by having been seen before.
    """

    limited = False

    def __init__(self, first: int, cookie: str = "") -> None:
        self._first = first
        self._cookie = f"{COOKIE}={cookie}".encode() if cookie else b""
        self._seen: set[int] = set()

    def pids(self) -> set[int]:
        table = processes.children()
        adopted = set(table.get(os.getpid(), []))
        roots = {pid for pid in adopted if pid == self._first or pid in self._seen or self._has_cookie(pid)}
        members = roots.union(*(processes.descendants(pid, table) for pid in roots))
        self._seen |= members
        return members

    def close(self) -> None:
        """Reap the orphans that were adopted."""
        for pid in self._seen - {self._first}:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def _has_cookie(self, pid: int) -> bool:
        with suppress(OSError):
            return bool(self._cookie) and self._cookie in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return False


def alive(pids: set[int]) -> set[int]:
    """Those of the processes that still run; a zombie that nobody has reaped yet does not."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.add(pid)
    return found
