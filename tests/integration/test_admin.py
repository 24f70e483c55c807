"""`make admin`: from the command to a login on the running dyno."""

from __future__ import annotations

import http.cookiejar
import os
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

from boiler.settings import ROOT
from tests.dyno import Dyno


def make_admin(dyno: Dyno, **environ: str) -> subprocess.CompletedProcess[str]:
    """Type `make admin` where the dyno runs, without its settings."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environ = {**keep, "BOILER_DIR": str(dyno.runtime), **environ}
    command = [sys.executable, "-m", "tests.verify.admin"]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


def test_an_account_that_was_made_on_the_running_dyno_gets_in(dyno: Dyno) -> None:
    made = make_admin(dyno, NAME="anna")
    assert made.returncode == 0, made.stderr
    name, password = re.search(r"name (\S+), password (\S+)", made.stdout).groups()
    assert "log in at /admin/ of localhost" in made.stdout
    assert password not in dyno.log()

    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
    page = opener.open(f"{dyno.url}/admin/login/?next=/admin/").read().decode()
    token = re.search(r'name="csrfmiddlewaretoken" value="(.+?)"', page)[1]
    form = {"username": name, "password": password, "csrfmiddlewaretoken": token, "next": "/admin/"}
    request = urllib.request.Request(f"{dyno.url}/admin/login/", urllib.parse.urlencode(form).encode())
    page = opener.open(request).read().decode()
    assert "Parked jobs" in page
    assert "Periodic tasks" in page


def test_a_target_that_has_no_way_in_is_named_in_one_line(dyno: Dyno, tmp_path: Path) -> None:
    for environ, reason in (
        ({"TARGET": "url", "URL": dyno.url}, "leads only to the page"),
        ({"TARGET": "heroku"}, "needs APP"),
        ({"NAME": "a b"}, "must be of letters"),
        ({"BOILER_DIR": str(tmp_path / "none"), "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}, "exit code 1"),
    ):
        made = make_admin(dyno, **environ)
        assert made.returncode == 1
        assert made.stderr.startswith("admin: ")
        assert reason in made.stderr
        assert made.stderr.count("\n") == 1
