"""The memory of the container: what the kernel allows and what is used. Control groups, versions 1 and 2."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

# cgroup(7): the files of version 1 and of version 2.
LIMITS = ("memory.limit_in_bytes", "memory.max")
USED = ("memory.usage_in_bytes", "memory.current")
UNLIMITED = 1 << 60  # version 1 writes "no limit" as a number close to 2**63


def memory(pid: int | str = "self") -> tuple[int, int] | None:
    """The limit and the use of a process's container in bytes, or None where there is no limit.

    The innermost limit counts. The use leaves out the file cache that the kernel can drop at once, as it
    would before it kills anything.
    """
    for folder in _folders(pid):
        limit = next((number for name in LIMITS if (number := _number(folder / name)) is not None), None)
        if limit is not None and limit < UNLIMITED:
            used = next((number for name in USED if (number := _number(folder / name)) is not None), 0)
            return limit, max(0, used - _droppable(folder))
    return None


def _folders(pid: int | str) -> list[Path]:
    """The process's memory cgroup and those above it, the innermost first."""
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return []
    paths = {}
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            paths["cgroup" if controllers else "cgroup2"] = path.lstrip("/")
    found = []
    for line in mounts:
        place, _, what = line.partition(" - ")
        point, (kind, _, options) = Path(place.split()[4]), what.split(maxsplit=2)
        if kind in paths and (kind == "cgroup2" or "memory" in options.split(",")):
            # In a container the path may be the host's, of which only this group itself is mounted.
            inner = point / paths[kind]
            inner = inner if inner.is_dir() else point
            found += [inner, *(folder for folder in inner.parents if folder.is_relative_to(point))]
    return found


def _number(path: Path) -> int | None:
    """A file's number; None if there is no such file, or it says `max`."""
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _droppable(folder: Path) -> int:
    """Bytes of file cache that nobody has used lately; version 1 counts its subgroups under another name."""
    with suppress(OSError, ValueError):
        values = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(values.get("total_inactive_file", values.get("inactive_file", 0)))
    return 0
