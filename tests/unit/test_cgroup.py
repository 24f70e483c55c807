"""What a container's control groups say, of both versions, seen from inside it and from the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from boiler import cgroup
from boiler.units import MB

GB = 1024 * MB


def machine_with(folder: Path, version: int, files: dict[str, str], *, inside: bool) -> Path:
    """A /proc/self and control groups like those of a container; `inside` it, the host's path leads nowhere."""
    proc, mount = folder / "proc", folder / "cgroup"
    proc.mkdir()
    group = mount if inside else mount / "docker" / "abc"
    group.mkdir(parents=True)
    for name, text in files.items():
        (group / name).write_text(text + "\n")
    kind = "cgroup2 cgroup rw" if version == 2 else "cgroup cgroup rw,cpu,cpuacct,memory"
    controllers = "0:" if version == 2 else "4:cpu,cpuacct,memory"
    (proc / "cgroup").write_text(f"{controllers}:/docker/abc\n")
    (proc / "mountinfo").write_text(f"31 23 0:28 / {mount} rw,relatime shared:9 - {kind}\n")
    return proc


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(
    ("version", "files", "limits"),
    [
        (2, {"memory.max": str(512 * MB), "cpu.max": "150000 100000"}, (512 * MB, 1.5)),
        (2, {"memory.max": "max", "cpu.max": "max 100000"}, (0, 0)),
        (1, {"memory.limit_in_bytes": str(GB), "cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000"}, (GB, 0.5)),
        (1, {"memory.limit_in_bytes": str(GB), "cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, (GB, 0)),
    ],
)
def test_a_containers_limits_are_found(
    tmp_path: Path, version: int, files: dict[str, str], limits: tuple[int, float], inside: bool
) -> None:
    proc = machine_with(tmp_path, version, files, inside=inside)
    assert (cgroup.memory_limit(proc), cgroup.cpu_limit(proc)) == limits


def test_no_limit_is_found_where_the_kernel_shows_none(tmp_path: Path) -> None:
    assert cgroup.memory_limit(tmp_path) == cgroup.cpu_limit(tmp_path) == 0


@pytest.mark.parametrize(
    ("version", "files"),
    [
        (2, {"memory.max": str(512 * MB), "memory.current": str(300 * MB), "memory.stat": f"inactive_file {50 * MB}"}),
        (
            1,
            {
                "memory.limit_in_bytes": str(512 * MB),
                "memory.usage_in_bytes": str(300 * MB),
                "memory.stat": f"inactive_file 1\ntotal_inactive_file {50 * MB}",
            },
        ),
    ],
)
def test_file_cache_that_can_be_dropped_is_not_in_use(tmp_path: Path, version: int, files: dict[str, str]) -> None:
    assert cgroup.memory(machine_with(tmp_path, version, files, inside=True)) == (512 * MB, 250 * MB)


def test_without_a_limit_there_is_no_share_to_tell(tmp_path: Path) -> None:
    unlimited = {"memory.limit_in_bytes": str(2**63 - 4096), "memory.usage_in_bytes": "1"}
    assert cgroup.memory(machine_with(tmp_path, 1, unlimited, inside=True)) is None
