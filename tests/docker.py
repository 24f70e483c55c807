"""Docker for the tests: an engine, a base image made of Debian's packages, an image of this checkout, containers.

Nothing comes from an image registry, so the tests run where none can be reached.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from boiler.settings import ROOT
from tests.needs import needs, needs_root
from tests.wait import wait_for

SUITE, PYTHON = "bookworm", "3.11"  # Debian's suite, and the Python that it has
BASE = f"double-boiler-base:{SUITE}"
# The wheels that suite's glibc takes (PEP 600), the newest first.
WHEELS = [f"manylinux_2_{minor}_{platform.machine()}" for minor in (36, 34, 31, 28, 27, 24, 17)]

PACKAGES = f"""\
FROM {BASE}
RUN useradd --create-home dyno && mkdir /app && chown dyno:dyno /app
USER dyno
WORKDIR /app
COPY requirements.txt /app/
COPY wheels /tmp/wheels
RUN python3 -m venv .venv && .venv/bin/pip install --quiet --disable-pip-version-check --no-cache-dir \\
    --no-index --find-links=/tmp/wheels --require-hashes -r requirements.txt
"""
WHEELHOUSE = f"""\
FROM {BASE}
COPY wheels /opt/wheels
ENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/opt/wheels
"""
CHECKOUT = """\
FROM {packages}
COPY --chown=dyno:dyno checkout /app
CMD ["app/boil", "start", "--release"]
"""


def docker(*words: str, stdin: bytes | None = None) -> str:
    """Run a docker command; returns what it prints. Raises AssertionError with its errors if it fails."""
    environ = {**os.environ, "DOCKER_BUILDKIT": "0"}  # Debian has no buildx; the old builder needs nothing more
    done = subprocess.run(["docker", *words], input=stdin, capture_output=True, env=environ, check=False)
    assert done.returncode == 0, f"docker {' '.join(words)}: {done.stderr.decode(errors='replace')[-4000:]}"
    return done.stdout.decode().strip()


def _answers() -> bool:
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


@contextmanager
def engine() -> Iterator[None]:
    """Docker's engine: the one that runs, or one that runs as long as this context."""
    needs("docker")
    if _answers():
        yield
        return
    needs_root("starts Docker's engine")
    with tempfile.NamedTemporaryFile(prefix="dockerd-") as log:
        process = subprocess.Popen([needs("dockerd")], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            wait_for(lambda: process.poll() is not None or _answers(), "Docker's engine answers", 60)
            assert process.poll() is None, Path(log.name).read_text()[-4000:]
            yield
        finally:
            process.terminate()
            process.wait(60)


def base_image() -> str:
    """The tag of a small Debian with Python, made once: no `ps`, as in many slim images."""
    return debian_image(BASE, "python3,python3-venv,ca-certificates")


def debian_image(tag: str, packages: str) -> str:
    """The tag of a minimal Debian with some packages, made once."""
    if not docker("images", "--quiet", tag):
        needs_root("makes a Debian folder with debootstrap")
        with tempfile.TemporaryDirectory(prefix="debian-") as folder:
            command = [needs("debootstrap"), "--variant=minbase", f"--include={packages}", SUITE, folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"debootstrap: {done.stdout[-2000:]}"
            leave_out = ["--exclude=./var/cache/apt/*", "--exclude=./var/lib/apt/lists/*"]
            tar = subprocess.Popen(["tar", "-C", folder, *leave_out, "-c", "."], stdout=subprocess.PIPE)
            subprocess.run(["docker", "import", "-", tag], stdin=tar.stdout, capture_output=True, check=True)
            assert tar.wait() == 0
    return tag


def packages_image(requirements: Path = ROOT / "requirements.txt") -> str:
    """The tag of the base image with the locked packages in /app/.venv, made once for each lock file."""
    tag = f"double-boiler-packages:{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"
    if docker("images", "--quiet", tag):
        return tag
    base_image()
    with tempfile.TemporaryDirectory(prefix="packages-") as name:
        folder = Path(name)
        (folder / "Dockerfile").write_text(PACKAGES)
        (folder / "requirements.txt").write_bytes(requirements.read_bytes())
        _download(requirements.read_text(), folder)
        docker("build", "--quiet", "--tag", tag, name)
    return tag


def wheelhouse_image() -> str:
    """The tag of the base image whose pip finds the locked packages in itself: what a Dockerfile can build upon.

    A build can't rely on the network's registries, which may want certificates that only this machine has.
    """
    tag = f"double-boiler-wheelhouse:{hashlib.sha256((ROOT / 'requirements.txt').read_bytes()).hexdigest()[:12]}"
    if not docker("images", "--quiet", tag):
        base_image()
        with tempfile.TemporaryDirectory(prefix="wheelhouse-") as name:
            (Path(name) / "Dockerfile").write_text(WHEELHOUSE)
            _download((ROOT / "requirements.txt").read_text(), Path(name))
            docker("build", "--quiet", "--tag", tag, name)
    return tag


def _download(requirements: str, folder: Path) -> None:
    """Fetch the wheels for the image's Python into `folder`/wheels, with this machine's pip and its settings.

    pip would judge the markers by its own Python, so they are left out: some wheels are fetched in vain.
    """
    every = folder / "every.txt"
    every.write_text(re.sub(r" ; [^\\\n]*", " ", requirements))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp"]
    command += [f"--platform={wheel}" for wheel in WHEELS]
    done = subprocess.run(
        [*command, f"--dest={folder / 'wheels'}", f"--requirement={every}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


def app_image(tag: str = "double-boiler-app:test") -> str:
    """An image of this checkout as git has or would take it, with the locked packages; starts the dyno."""
    with tempfile.TemporaryDirectory(prefix="checkout-") as name:
        (Path(name) / "Dockerfile").write_text(CHECKOUT.format(packages=packages_image()))
        checkout(Path(name) / "checkout")
        docker("build", "--quiet", "--tag", tag, name)
    return tag


def checkout(folder: Path) -> None:
    """Copy the files of this checkout that git has or would take, changes not yet committed included."""
    folder.mkdir()
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    names = b"\0".join(name for name in listed.split(b"\0") if name and (ROOT / os.fsdecode(name)).is_file())
    tar = subprocess.run(["tar", "-c", "--null", "-T", "-"], cwd=ROOT, input=names, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=tar.stdout, check=True)


class Container:
    """A started container. `memory` is Docker's word for its limit (`512m`), `grace` its seconds to stop in."""

    def __init__(
        self, image: str, *words: str, environ: Mapping[str, str] | None = None, memory: str = "512m", grace: int = 30
    ) -> None:
        with tempfile.NamedTemporaryFile("w", prefix="environ-") as secrets:  # a command line is for all to see
            secrets.writelines(f"{name}={value}\n" for name, value in (environ or {}).items())
            secrets.flush()
            limits = [f"--memory={memory}", f"--memory-swap={memory}", f"--stop-timeout={grace}"]
            self.name = docker("run", "--detach", *limits, f"--env-file={secrets.name}", image, *words)[:12]

    @property
    def address(self) -> str:
        """The container's address on Docker's own network; reachable from this machine alone."""
        return docker("inspect", "--format={{.NetworkSettings.IPAddress}}", self.name)

    def run(self, *words: str) -> str:
        """Run a command in the container; returns what it prints."""
        return docker("exec", self.name, *words)

    def log(self) -> str:
        """What the container has printed."""
        done = subprocess.run(["docker", "logs", self.name], capture_output=True, check=False)
        return (done.stdout + done.stderr).decode(errors="replace")

    def stop(self) -> int:
        """Stop it as `docker stop` does; returns the exit code of its first process."""
        docker("stop", self.name)
        return int(docker("inspect", "--format={{.State.ExitCode}}", self.name))

    def remove(self) -> None:
        """End it at once and forget it."""
        docker("rm", "--force", "--volumes", self.name)
