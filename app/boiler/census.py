"""What runs in a dyno, as the kernel tells it: `boil inspect` and /statusz hand it to `make verify`.

Read from /proc, so that no `ps` is needed, which slim images don't have.
"""

from __future__ import annotations

import ipaddress
import os
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from . import cgroup, processes
from .procfile import Entry
from .settings import SETTINGS, get

LISTEN = "0A"  # a socket's state in /proc/net/tcp (proc_net_tcp in the kernel's documentation)
SHORTEST_SECRET = 8  # shorter words stand in command lines by chance


@dataclass(frozen=True)
class Plan:
    """What a line of LocalProcfile is to become: its kind, and how many children it has."""

    kind: str  # gunicorn, celery worker, celery beat; other for a program that the boiler knows nothing of
    fewest: int = 0
    most: int | None = None  # None for any number


def plan(entry: Entry, environ: Mapping[str, str]) -> Plan:
    """What a line of LocalProcfile becomes with these settings. Options in the line go before settings."""
    words = entry.command.split()
    programs = {Path(word).name for word in words}
    if "gunicorn" in programs:
        workers = _number(words, "-w", "--workers") or get("WEB_CONCURRENCY", environ)
        return Plan("gunicorn", workers, workers)
    if "celery" in programs and "beat" in words:
        return Plan("celery beat", 0, 0)
    if "celery" in programs and "worker" in words:
        if _option(words, "-P", "--pool") not in (None, "prefork", "processes"):
            return Plan("celery worker", 0, 0)
        if autoscale := _option(words, "--autoscale"):
            most, _, fewest = autoscale.partition(",")
            return Plan("celery worker", int(fewest or 0), int(most))
        children = _number(words, "-c", "--concurrency") or get("WORKER_CONCURRENCY", environ)
        return Plan("celery worker", children, children)
    return Plan("other")


def _option(words: list[str], *names: str) -> str | None:
    """The value of an option: `--pool gevent`, `--pool=gevent`."""
    for index, word in enumerate(words):
        name, _, value = word.partition("=")
        if name in names:
            return value or (words[index + 1] if index + 1 < len(words) else None)
    return None


def _number(words: list[str], *names: str) -> int | None:
    value = _option(words, *names)
    return int(value) if value and value.isdecimal() else None


@dataclass(frozen=True)
class Process:
    """One process. `state` is the kernel's letter (proc_pid_stat(5)), `title` the command line as `ps` shows it."""

    pid: int
    parent: int
    state: str
    title: str


def everything() -> dict[int, Process]:
    """Every process that can be seen from here, zombies included."""
    found = {}
    for name in os.listdir(processes.PROC):  # noqa: PTH208 (a Path for each of them is four times slower)
        if name.isdecimal() and (stat := processes.stat(name)):
            found[int(name)] = Process(int(name), stat[1], stat[0], processes.title(int(name)))
    return found


def take(status: dict[str, Any], root: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """The census of the dyno whose boiler answered `status`, with `environ` as its environment.

    No title leaves this function that holds a secret: all of it may travel.
    """
    seen = everything()
    init = status["boiler"]["init_pid"]
    mains = {one["pid"]: one["name"] for one in status["processes"] if one["pid"]}
    members = [init, *_below(init, seen)]
    hidden = Hidden(environ)
    names = {pid: _name(pid, seen, mains) for pid in members if pid in seen}
    strays = _strays(seen, set(members), root, {one["name"] for one in status["processes"]})
    limited = cgroup.memory(Path("/proc") / str(status["boiler"]["pid"]))
    return {
        "processes": [{**vars(hidden.shown(seen[pid])), "name": name} for pid, name in names.items()],
        "strays": [vars(hidden.shown(seen[pid])) for pid in strays],
        "zombies": [pid for pid, process in seen.items() if process.state == "Z" and _is_ours(pid, seen, init)],
        "listening": _listening(names),
        "leaks": hidden.leaks(seen.values()),
        "memory": {"limit": limited[0], "used": limited[1]} if limited else None,
    }


def _below(pid: int, seen: Mapping[int, Process]) -> list[int]:
    table: dict[int, list[int]] = {}
    for process in seen.values():
        table.setdefault(process.parent, []).append(process.pid)
    return processes.descendants(pid, table)


def _ancestors(pid: int, seen: Mapping[int, Process]) -> Iterable[int]:
    while pid in seen and seen[pid].parent:
        pid = seen[pid].parent
        yield pid


def _name(pid: int, seen: Mapping[int, Process], mains: Mapping[int, str]) -> str:
    """The inner process that a process belongs to; "" for what only the boiler is above."""
    return next((mains[each] for each in (pid, *_ancestors(pid, seen)) if each in mains), "")


def _is_ours(pid: int, seen: Mapping[int, Process], init: int) -> bool:
    """Whether a zombie is this dyno's: below its boiler, or left to its container's first process since it began."""
    if init in _ancestors(pid, seen):
        return True
    left = seen[pid].parent == 1 and 1 in _ancestors(init, seen)
    return left and processes.started(pid) >= processes.started(init)


def _strays(seen: Mapping[int, Process], members: set[int], root: Path, names: set[str]) -> list[int]:
    """The processes of a boiler that is gone: they work in this folder under no boiler.

    They are told by a title `NAME: …`, which all Python processes of a dyno have, or by what the boiler puts
    into an environment. One's own processes and those above them (a shell) are not among them.
    """
    own = {os.getpid(), *_ancestors(os.getpid(), seen)}
    found = []
    for pid, process in seen.items():
        if pid in members | own or process.state == "Z" or not _works_in(pid, root):
            continue
        titled = process.title.partition(": ")[0] in names
        governed = any("boiler: supervisor" in seen[each].title for each in _ancestors(pid, seen) if each in seen)
        if (titled or _started_by_boiler(pid)) and not governed:
            found.append(pid)
    return found


def _works_in(pid: int, root: Path) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(root)
    return False


def _started_by_boiler(pid: int) -> bool:
    with suppress(OSError):
        return b"\0BOILER_PROCESS=" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    return False


def _listening(names: Mapping[int, str]) -> list[dict[str, Any]]:
    """The TCP ports that the dyno's processes listen on: address, port, and the pids and names of who has them."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == LISTEN:
                    sockets[words[9]] = _address(words[1])
    found: dict[str, dict[str, Any]] = {}
    for pid, name in names.items():
        for inode in _socket_inodes(pid) & sockets.keys():
            address, port = sockets[inode]
            row = found.setdefault(inode, {"address": address, "port": port, "pids": [], "names": []})
            row["pids"].append(pid)
            row["names"] = sorted({*row["names"], name or "boiler"})
    return list(found.values())


def _address(text: str) -> tuple[str, int]:
    """`0100007F:1F90` is ("127.0.0.1", 8080): hexadecimal, each 32 bits in the machine's own order."""
    host, port = text.split(":")
    raw = bytes.fromhex(host)
    words = struct.unpack(f"={len(raw) // 4}I", raw)
    return str(ipaddress.ip_address(struct.pack(f">{len(words)}I", *words))), int(port, 16)


def _socket_inodes(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
            with suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{fd}")  # noqa: PTH115 (hundreds of them)
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


class Hidden:
    """The secrets among the settings: which command lines hold one, and titles without them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._secrets = {name: _parts(environ.get(name, "")) for name, one in SETTINGS.items() if one.secret}

    def leaks(self, everyone: Iterable[Process]) -> list[dict[str, Any]]:
        """Which process shows which setting: its pid, its program's name, the setting's name."""
        return [
            {"pid": process.pid, "program": self._program(process), "setting": name}
            for process in everyone
            for name, parts in self._secrets.items()
            if any(part in process.title for part in parts)
        ]

    def shown(self, process: Process) -> Process:
        """The process, with a title that holds none of the secrets."""
        title = process.title
        for part in {part for parts in self._secrets.values() for part in parts}:
            title = title.replace(part, "***")
        return Process(process.pid, process.parent, process.state, title[:200])

    def _program(self, process: Process) -> str:
        return Path((self.shown(process).title.split() or ["?"])[0]).name


def _parts(secret: str) -> list[str]:
    """What of a secret must stand nowhere: all of it, and of a URL the password; a URL without one is no secret."""
    if "://" in secret:
        password = urlsplit(secret).password or ""
        parts = [password, unquote(password)] if password else []
        parts += [secret] if password else []
    else:
        parts = [secret]
    return sorted({part for part in parts if len(part) >= SHORTEST_SECRET}, key=len, reverse=True)
