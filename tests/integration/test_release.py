"""The release phase: before the start where the platform has one, in the dyno's start where it has none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from boiler.settings import ROOT
from tests.dyno import Dyno


def type_release_line(dyno: Dyno) -> subprocess.CompletedProcess[str]:
    """Run the `release` line of Procfile as a platform does: by a shell, in the dyno's environment."""
    lines = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
    environ = {**dyno.environ, "PATH": f"{Path(sys.executable).parent}:{dyno.environ['PATH']}"}
    return subprocess.run(
        ["/bin/sh", "-c", lines["release"]], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )


def test_a_platform_that_releases_first(tmp_path: Path, database_url: str) -> None:
    dyno = Dyno(tmp_path / "dyno", {"DATABASE_URL": database_url})
    released = type_release_line(dyno)
    assert released.returncode == 0, released.stderr
    assert "Applying jobs.0001_pgmq... OK" in released.stdout
    try:
        assert dyno.start().wait_until_healthy().stop() == 0
    finally:
        dyno.kill()


def test_a_platform_that_releases_after_the_start(tmp_path: Path, database_url: str) -> None:
    dyno = Dyno(tmp_path / "dyno", {"DATABASE_URL": database_url, "RELEASE_AT_START": "1"})
    try:
        dyno.start()
        released = type_release_line(dyno)
        assert (released.returncode, released.stdout) == (0, "RELEASE_AT_START=1: the dyno runs this at its start\n")
        dyno.wait_until_healthy()
        assert "Applying jobs.0001_pgmq... OK" in dyno.log()
        assert dyno.stop() == 0
    finally:
        dyno.kill()


def test_a_release_that_fails_tells_the_platform(tmp_path: Path) -> None:
    nowhere = f"postgresql://dyno@%2F{str(tmp_path).strip('/').replace('/', '%2F')}/dyno"
    dyno = Dyno(tmp_path / "dyno", {"DATABASE_URL": nowhere})
    assert type_release_line(dyno).returncode == 1
