"""`make admin`: from the command to a login on the running dyno."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import urlencode

from boiler.settings import ROOT
from jobs.visit import Site
from tests.dyno import Dyno

# What the router in front of a dyno would add.
ROUTER = {"Host": "localhost", "X-Forwarded-Proto": "https"}


def make_admin(**environ: str) -> subprocess.CompletedProcess[str]:
    """Type `make admin` with these variables and none of the tests' own settings."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "USER") if name in os.environ}
    environ = {**keep, **environ}
    command = [sys.executable, "-m", "tests.verify.admin"]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


def credentials(made: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """The name and the password that `make admin` has printed."""
    assert made.returncode == 0, made.stderr
    name, password = re.search(r"name (\S+), password (\S+)", made.stdout).groups()
    return name, password


def admin_page(site: Site, name: str, password: str) -> str:
    """What an operator sees after logging in, as a browser behind the site's router does it."""
    referer = f"https://{site.headers['Host']}/admin/login/"
    headers = {**site.headers, "Referer": referer, "Content-Type": "application/x-www-form-urlencoded"}
    cookies: SimpleCookie = SimpleCookie()

    def ask(method: str, path: str, form: dict[str, str] | None = None) -> str:
        connection = http.client.HTTPConnection(site.url.removeprefix("http://"), timeout=60)
        sent = {**headers, "Cookie": "; ".join(f"{key}={one.value}" for key, one in cookies.items())}
        connection.request(method, path, urlencode(form) if form else None, sent)
        answer = connection.getresponse()
        for line in answer.headers.get_all("Set-Cookie") or []:
            cookies.load(line)
        page = answer.read().decode()
        connection.close()
        return page

    token = re.search(r'name="csrfmiddlewaretoken" value="(.+?)"', ask("GET", "/admin/login/"))[1]
    ask("POST", "/admin/login/", {"username": name, "password": password, "csrfmiddlewaretoken": token})
    return ask("GET", "/admin/")


def test_an_account_that_was_made_on_the_running_dyno_gets_in(dyno: Dyno) -> None:
    made = make_admin(NAME="anna", BOILER_DIR=str(dyno.runtime))
    name, password = credentials(made)
    assert "log in at /admin/ of localhost" in made.stdout
    assert password not in dyno.log()
    page = admin_page(Site(dyno.url, headers=ROUTER), name, password)
    assert "Parked jobs" in page
    assert "Periodic tasks" in page


def test_a_target_that_has_no_way_in_is_named_in_one_line(dyno: Dyno, tmp_path: Path) -> None:
    for environ, reason in (
        ({"TARGET": "url", "URL": dyno.url}, "leads only to the page"),
        ({"TARGET": "heroku"}, "needs APP"),
        ({"NAME": "a b"}, "must be of letters"),
        ({"BOILER_DIR": str(tmp_path / "none"), "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}, "exit code 1"),
    ):
        made = make_admin(**{"BOILER_DIR": str(dyno.runtime), **environ})
        assert made.returncode == 1
        assert made.stderr.startswith("admin: ")
        assert reason in made.stderr
        assert made.stderr.count("\n") == 1
