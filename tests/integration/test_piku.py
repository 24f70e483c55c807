"""`make deploy-piku` from a clone, on the double of a Piku host in tests/piku/."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from boiler import processes
from boiler.settings import ROOT
from tests.clone import GitClone
from tests.dyno import free_port
from tests.piku.host import Host
from tests.wait import wait_for

# Every deployment starts a real dyno.
pytestmark = pytest.mark.timeout(600)

SECRET = "hunter2-of-the-inventory"


class Clone(GitClone):
    """A clone that is deployed to a host as APP=shop."""

    def __init__(self, root: Path, host: Host) -> None:
        super().__init__(root)
        self.host, self.address = host, host.name
        self.commit()
        self.port = free_port()
        self.inventory = root.parent / "inventory.json"
        self.set()

    def commit(self, name: str = "", text: str = "") -> str:
        """Commit everything, after one file got another content."""
        if name:
            (self.root / name).write_text(text)
            os.utime(self.root / name, (0, 0))  # make would install what is new in requirements.txt
        return super().commit()

    def set(self, variables: dict[str, Any] | None = None, **config: Any) -> None:
        """Write the inventory, outside the checkout; the host has no nginx, so the app gets a port of its own."""
        settings = {"PORT": self.port, "WEB_CONCURRENCY": 1, "MAIL_PASSWORD": SECRET, **config}
        shop = {
            "domains": ["127.0.0.1"],
            "wait": 90,
            "health_address": f"http://127.0.0.1:{self.port}",
            "config": settings,
            **(variables or {}),
        }
        self.inventory.write_text(json.dumps({"piku": {"hosts": {"shop": shop}}}))

    def make(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        done = self._start(["make", *words], "", environ)
        print(done.stdout, done.stderr)
        return done

    def destroy(self, typed: str) -> subprocess.CompletedProcess[str]:
        """Run `make destroy-piku` at a terminal and type an answer."""
        return self._start(
            ["script", "-qec", f"make destroy-piku HOST={self.address} APP=shop", "/dev/null"], f"{typed}\n", {}
        )

    def _start(self, command: list[str], typed: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
        path = f"{self.host.bin}:{os.environ['PATH']}"
        kept = {"PATH": path, "LANG": os.environ.get("LANG", "C.UTF-8"), "HOME": str(self.root.parent)}
        environ = {**kept, "ANSIBLE_INVENTORY": str(self.inventory), **environ}
        return subprocess.run(
            command, cwd=self.root, env=environ, input=typed, capture_output=True, text=True, check=False
        )

    def deploy(self, *words: str, **environ: str) -> str:
        """Deploy, which must succeed; returns what was printed."""
        done = self.make("deploy-piku", f"HOST={self.address}", "APP=shop", *words, **environ)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{self.host.log()}"
        return done.stdout

    def refused(self, *words: str) -> str:
        """Deploy, which must fail; returns the one line that says why."""
        done = self.make("deploy-piku", f"HOST={self.address}", "APP=shop", *words)
        assert done.returncode != 0
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("fatal:")]
        return line

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        """One request to the app, as nginx passes it on; returns the status and the answer's JSON."""
        headers = {"Content-Type": "application/json", "X-Forwarded-Proto": "https"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)

    def boiler(self) -> dict[str, Any]:
        """What `boil status` says on the host."""
        return json.loads(self.host.ssh("run", "shop", "--", "app/boil", "status", "--json").stdout)

    def deployed(self) -> str:
        return self.host.ssh("run", "shop", "--", "git", "rev-parse", "HEAD").stdout.strip()


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


@pytest.fixture
def clone(host: Host, tmp_path: Path) -> Clone:
    return Clone(tmp_path / "a clone", host)


def config_of(host: Host) -> dict[str, str]:
    return dict(line.split("=", 1) for line in (host.root / "envs" / "shop" / "ENV").read_text().splitlines())


def post(clone: Clone, **order: Any) -> int:
    status, answer = clone.ask("/jobs", order)
    assert status == 202, answer
    return answer["ids"][0]


def test_from_nothing_to_a_healthy_app_and_back(clone: Clone, host: Host) -> None:
    output = clone.deploy("CHECK=1")
    assert "+DJANGO_SECRET_KEY: set" in output
    assert "-nothing is deployed" in output
    assert list((host.root / "envs").iterdir()) == [], "CHECK=1 changes nothing"

    output = clone.deploy(ANSIBLE_VERBOSITY="4", ANSIBLE_DIFF_ALWAYS="1")
    assert "https://127.0.0.1" in output
    assert "ok    A job goes round" in output
    assert "-----> spawning 'shop:web.1'" in output
    assert "worker.1" not in output, "the first push starts nothing but web"
    boiler = clone.boiler()
    assert [one["name"] for one in boiler["processes"]] == ["postgres", "web", "worker", "beat"]
    parent = int(Path(f"/proc/{boiler['boiler']['init_pid']}/stat").read_text().rpartition(")")[2].split()[1])
    assert "uWSGI master" in processes.title(parent), "no shell between, which would die at the first SIGTERM"
    assert (host.root / "data" / "shop" / "postgres" / "PG_VERSION").exists(), "the folder that Piku keeps"
    first = post(clone, kind="sleep", seconds=0)

    # No secret is printed, or on a command line there.
    commands, config = host.commands(), config_of(host)
    for secret in (SECRET, config["DJANGO_SECRET_KEY"], config["STATUS_TOKEN"]):
        assert secret not in output
        assert not any(secret in line for line in commands)
    assert (host.root / "envs" / "shop" / "ENV").stat().st_mode & 0o77 == 0

    # Nothing differs: nothing is done.
    output = clone.deploy()
    assert re.search(r"shop +: ok=\d+ +changed=0 ", output)
    assert not {"deploy", "git-receive-pack"} & {line.split()[0] for line in host.commands()[len(commands) :]}
    assert clone.boiler()["boiler"]["pid"] == boiler["boiler"]["pid"]

    # A changed setting, while a job runs: one restart, and the job is done once.
    job = post(clone, kind="sleep", seconds=15)  # still runs at the restart of a slow machine, and ends in time
    wait_for(lambda: clone.ask(f"/jobs/{job}")[1]["state"] == "running", "the job runs")
    commands = host.commands()
    clone.set(LOG_LEVEL="info")
    clone.deploy("SIZE=1g")
    assert [line.split()[0] for line in host.commands()[len(commands) :]].count("deploy") == 1
    found = clone.ask(f"/jobs/{job}")[1]
    assert (found["state"], found["runs"]) == ("done", 1)
    assert config_of(host) == {**config, "LOG_LEVEL": "info", "DYNO_RAM": "1024"}, "keys are made once"

    # A new commit, and back to the one before.
    before = clone.deployed()
    after = clone.commit("README.md", "Another page.\n")
    clone.deploy()
    assert clone.deployed() == after
    clone.git("reset", "--quiet", "--hard", before)
    clone.deploy()
    assert clone.deployed() == before
    assert clone.ask(f"/jobs/{first}")[1]["state"] == "done"

    # Gone, but for the data.
    assert "what was typed is not shop" in clone.destroy("ship").stdout
    assert clone.ask("/healthz")[0] == 200
    init = clone.boiler()["boiler"]["init_pid"]
    gone = clone.destroy("shop")
    assert gone.returncode == 0, gone.stdout
    assert host.ssh("apps").stdout == "There are no applications deployed.\n"
    assert init not in host.container.pids()
    assert (host.root / "data" / "shop" / "postgres" / "PG_VERSION").exists()


def test_names_of_which_one_begins_as_the_other_are_refused(clone: Clone, host: Host) -> None:
    (host.root / "apps" / "shop-staging").mkdir()
    assert "each restart of shop would stop shop-staging" in clone.refused()
    (host.root / "apps" / "shop-staging").rename(host.root / "apps" / "sh")
    assert "each restart of sh would stop shop" in clone.refused()
    assert not (host.root / "envs" / "shop").exists()


def test_a_value_that_would_not_reach_the_app_is_refused_before_anything_is_written(clone: Clone, host: Host) -> None:
    clone.set(REDIS_URL="redis://:p%40ss@127.0.0.1")
    line = clone.refused()
    assert "config: REDIS_URL: Piku would hand it to the app changed" in line
    assert "p%40ss" not in line
    assert not (host.root / "envs" / "shop").exists()


def test_packages_that_can_not_be_installed_fail_the_deployment_until_they_can(clone: Clone) -> None:
    requirements = clone.root / "requirements.txt"
    good = requirements.read_text()
    clone.commit("requirements.txt", f"{good}no-such-package==1\n")
    for _ in range(2):  # Piku itself would not try pip again
        assert "No matching distribution found for no-such-package" in clone.refused()
    clone.commit("requirements.txt", good)
    clone.deploy()
    assert clone.ask("/healthz")[0] == 200


def test_a_release_that_fails_and_an_app_that_does_not_start_fail_the_deployment(clone: Clone, host: Host) -> None:
    clone.set({"wait": 5}, RELEASE_AT_START=0, DATABASE_URL="postgresql://dyno@127.0.0.1:1/dyno", DATABASE_WAIT=0)
    assert "Exiting due to release command error value: 1" in clone.refused()
    assert "shop is not up within 5 s: " in clone.refused()
    clone.set(DATABASE_URL=None, RELEASE_AT_START=1, DATABASE_WAIT=None)
    clone.deploy()
    assert clone.ask("/healthz")[0] == 200


def test_a_host_that_can_not_be_reached_or_is_not_named(clone: Clone) -> None:
    clone.address = "nowhere.invalid"
    assert "piku@nowhere.invalid: ssh: " in (line := clone.refused())
    assert "check HOST" in line
    clone.address = ""
    assert "no host: HOST=example.com" in clone.refused()
    assert "say which deployment" in clone.make("deploy-piku").stderr


def test_the_pages_name_the_commands_that_are_typed_here() -> None:
    pages = (ROOT / "README.md").read_text() + (ROOT / "docs" / "piku.md").read_text()
    assert set(re.findall(r"make \S+-piku HOST=example.com APP=shop[^`\n]*", pages)) == {
        "make deploy-piku HOST=example.com APP=shop",
        "make deploy-piku HOST=example.com APP=shop CHECK=1",
        "make deploy-piku HOST=example.com APP=shop SIZE=1g",
        "make destroy-piku HOST=example.com APP=shop",
    }
