"""A packed dyno under test: `app/boil start`, as a platform's Procfile starts it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from boiler import status
from boiler.settings import ROOT
from tests.platform import DOCKER, Container, Ending, Limits, Stop, alive
from tests.wait import wait_for

__all__ = ["Dyno", "alive", "ask", "free_port"]

# What the tests count on, whatever this machine's plan would be.
SIZES = {"WEB_CONCURRENCY": "2", "WORKER_CONCURRENCY": "2", "DATABASE_POOL": "4"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(port: int, path: str, method: str = "GET", body: Any = None, timeout: float = 60) -> tuple[int, Any]:
    """One request to this machine; returns the status and the body, parsed if it is JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    is_json = "json" in (response.headers["Content-Type"] or "")
    return response.status, json.loads(text) if is_json else text.decode()


class Dyno:
    """Starts the boiler in a folder of its own for sockets and log; `environ` adds settings.

    `platform` and `limits` may be set before the start.
    """

    def __init__(self, folder: Path, environ: dict[str, str], root: Path = ROOT) -> None:
        folder.mkdir(parents=True)
        self.root = root
        self.log_file = folder / "log"
        self.runtime = Path(tempfile.mkdtemp(prefix="boiler-test-"))  # short: sockets lie in it
        port = environ.get("PORT", "")
        self.port = int(port) if port.isdecimal() else free_port()
        self.environ = {
            **os.environ,
            "PORT": port or str(self.port),
            "BIND_ADDRESS": "127.0.0.1",
            "BOILER_DIR": str(self.runtime),
            "LOG_LEVEL": "info",
            **SIZES,
            **environ,
        }
        self.platform = DOCKER
        self.limits = Limits()
        self.container: Container | None = None

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The dyno's first process."""
        return self.container and self.container.process

    @process.setter
    def process(self, process: subprocess.Popen[bytes]) -> None:
        self.container = Container(process, self.platform)

    @property
    def boil(self) -> list[str]:
        return [sys.executable, str(self.root / "app" / "boil")]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, *words: str) -> Dyno:
        """Run `boil start` with these words."""
        return self.launch([*self.boil, "start", *words])

    def launch(self, command: list[str]) -> Dyno:
        """Run any command as the dyno's first process."""
        with self.log_file.open("ab") as log:
            self.container = Container.start(
                command,
                self.platform,
                port=self.port,
                environ=self.environ,
                cwd=self.root,
                log=log,
                limits=self.limits,
            )
        return self

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def get(self, path: str, method: str = "GET", body: Any = None, timeout: float = 60) -> tuple[int, Any]:
        """One request; returns the status and the body, parsed if it is JSON."""
        return ask(self.port, path, method, body, timeout)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        return self.get(path, "POST", body)

    def is_healthy(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the dyno ended with {self.process.returncode}:\n{self.log()[-4000:]}")
        with suppress(OSError, http.client.HTTPException):
            return self.get("/healthz", timeout=10)[0] == 200
        return False

    def wait_until_healthy(self) -> Dyno:
        try:
            wait_for(self.is_healthy, "/healthz answers 200", 60)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()[-4000:]}") from None
        return self

    def status(self) -> dict[str, Any]:
        return status.ask(self.runtime / "status", {"command": "status"}, 10)

    def inner(self, name: str) -> dict[str, Any]:
        return {one["name"]: one for one in self.status()["processes"]}[name]

    def pids(self) -> set[int]:
        """All processes of the dyno: the boiler's two, its images, and what they have started."""
        found = self.status()
        images = {one["pid"] for one in found["images"]}
        below = {pid for one in found["processes"] for pid in [one["pid"], *(c["pid"] for c in one["children"])]}
        return {found["boiler"]["pid"], found["boiler"]["init_pid"]} | images | {pid for pid in below if pid}

    def stop(self, seconds: float = 60) -> int:
        """SIGTERM to the first process, as Docker does, SIGKILL to all after `seconds`; returns the exit code.

        Raises AssertionError if the first process has ended in time and left others.
        """
        ending = self.cycle(Stop.PID1, seconds)
        assert ending.killed or not ending.left_over, f"left over: {ending.left_over}"
        return ending.returncode

    def cycle(self, how: Stop | None = None, grace: float | None = None) -> Ending:
        """Stop the dyno as its platform does, or in another way or with another grace (seconds)."""
        assert self.container is not None
        platform = self.container.platform
        self.container.platform = replace(platform, stop=how or platform.stop, grace=grace or platform.grace)
        return self.container.stop()

    def kill(self) -> None:
        """SIGKILL to every process at once."""
        if self.container is not None:
            self.container.close()
        shutil.rmtree(self.runtime, ignore_errors=True)
