"""The demo makes room for one's own app: its folder and one line go, and all else works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from boiler.settings import ROOT
from tests.dyno import Dyno


@pytest.mark.timeout(300)
def test_the_dyno_works_without_the_demo_and_make_verify_says_so(database_url: str, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "staticfiles", "bench", ".*")
    shutil.copytree(ROOT, checkout, ignore=ignored)
    # What runs the tests, under the name by which `app/boil` looks for its own.
    (checkout / ".venv").symlink_to(sys.prefix)
    environ = {**os.environ, "DATABASE_URL": database_url, "BOILER_DIR": str(tmp_path / "none")}

    def type_(*command: str, **more: str) -> None:
        done = subprocess.run(
            command, cwd=checkout, env={**environ, **more}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    type_("app/boil", "run", "python", "app/manage.py", "migrate")
    type_("app/boil", "run", "python", "app/manage.py", "migrate", "demo", "zero")
    shutil.rmtree(checkout / "app" / "demo")
    settings = checkout / "app" / "config" / "settings.py"
    before = settings.read_text()
    settings.write_text(before.replace('    "demo",\n', ""))
    assert len(before.splitlines()) == len(settings.read_text().splitlines()) + 1

    dyno = Dyno(tmp_path / "dyno", {"DATABASE_URL": database_url}, checkout)
    try:
        dyno.start("--release").wait_until_healthy()
        assert dyno.get("/") == (200, "This dyno runs. Its first page is still to come: app/config/urls.py\n")
        assert dyno.get("/admin/")[0] == 302
        verify = ("-m", "pytest", "--confcutdir", "tests/verify", "-p", "no:cacheprovider", "-p", "no:django")
        here = {"BOILER_DIR": str(dyno.runtime), "PORT": str(dyno.port)}
        type_(sys.executable, *verify, "--quiet", "tests/verify", **here)
        assert dyno.stop() == 0
        assert "Traceback" not in dyno.log()
    finally:
        dyno.kill()
