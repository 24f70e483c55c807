"""What the container allows and what it uses, as its control groups tell: versions 1 and 2 (cgroups(7))."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

PROC = Path("/proc/self")
UNLIMITED = 1 << 60  # version 1 writes "no limit" as a number close to 2**63


def memory_limit(proc: Path = PROC) -> int:
    """Bytes that a process's container may use; 0 for no limit."""
    limits = [*_numbers("", "memory.max", proc), *_numbers("memory", "memory.limit_in_bytes", proc)]
    return min((limit for _, limit in limits), default=0)


def cpu_limit(proc: Path = PROC) -> float:
    """CPUs that a process's container may use by its quota; 0 for no limit."""
    limits = [text.split() for _, text in _files("", "cpu.max", proc)]
    quotas, periods = (_files("cpu", f"cpu.cfs_{name}_us", proc) for name in ("quota", "period"))
    limits += [[quota, period] for (_, quota), (_, period) in zip(quotas, periods, strict=False)]
    return min((int(quota) / int(period) for quota, period in limits if quota.isdecimal()), default=0)


def memory(proc: Path = PROC) -> tuple[int, int] | None:
    """The limit and the use of a process's container in bytes, or None where there is no limit.

    The innermost limit counts. The use leaves out the file cache that the kernel can drop at once, as it
    would before it kills anything.
    """
    limits = [*_numbers("", "memory.max", proc), *_numbers("memory", "memory.limit_in_bytes", proc)]
    if not limits:
        return None
    group, limit = limits[0]
    for name in ("memory.current", "memory.usage_in_bytes"):
        with suppress(OSError):
            return limit, max(0, int((group / name).read_text()) - _droppable(group))
    return limit, 0


def _droppable(group: Path) -> int:
    """Bytes of file cache that nobody has used lately; version 1 counts its subgroups under another name."""
    with suppress(OSError, ValueError):
        values = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(values.get("total_inactive_file", values.get("inactive_file", 0)))
    return 0


def _numbers(controller: str, name: str, proc: Path) -> list[tuple[Path, int]]:
    """The limits in these files; "max" (version 2) and enormous numbers (version 1) are none."""
    texts = [(group, text) for group, text in _files(controller, name, proc) if text.isdecimal()]
    return [(group, int(text)) for group, text in texts if int(text) < UNLIMITED]


def _files(controller: str, name: str, proc: Path) -> list[tuple[Path, str]]:
    """What the files of this name say, of the process's control group and those above it, the innermost first.

    `controller` is "" for version 2.
    """
    found = []
    with suppress(OSError):
        for group in _groups(controller, proc):
            with suppress(OSError):
                found.append((group, (group / name).read_text().strip()))
    return found


def _groups(controller: str, proc: Path) -> list[Path]:
    """The folders of the process's group and those above it, up to where the hierarchy is mounted."""
    own = ""
    for line in (proc / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            own = path.lstrip("/")
    for line in (proc / "mountinfo").read_text().splitlines():
        place, _, what = line.partition(" - ")
        kind, _, options = what.split(maxsplit=2)
        if (kind == "cgroup2" and not controller) or (kind == "cgroup" and controller in options.split(",")):
            mount = Path(place.split()[4])
            # In a container the path may be the host's, of which only this group itself is mounted.
            group = mount / own if (mount / own).is_dir() else mount
            return [one for one in (group, *group.parents) if one.is_relative_to(mount)]
    return []
