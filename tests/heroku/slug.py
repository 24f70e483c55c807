"""The build: from a tarball of the source to a folder that dynos run, as Heroku's Python buildpack does it.

Done for real, and in the buildpack's order (heroku-buildpack-python v351): the checks of the lock file and of
.python-version, a virtual environment, `pip install -r requirements.txt`, `manage.py collectstatic` without any of
the app's config. The Python is the one that runs the tests, whatever .python-version says.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

LOCK_FILES = ("requirements.txt", "poetry.lock", "uv.lock", "Pipfile.lock")
PYTHONS = re.compile(r"3\.1[0-4](\.\d+)?$")
PROCFILE_LINE = re.compile(r"^\s*([A-Za-z0-9_-]+):\s*(.+)$", re.MULTILINE)
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


class BuildError(Exception):
    """The build fails; the message is what Heroku prints last."""


def build(source: bytes, folder: Path, cache: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Make a slug in `folder` (which is made); returns the process types of its Procfile."""
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=BytesIO(source), mode="r:gz") as archive:
        archive.extractall(folder, filter="data")
    say("-----> Building on the Heroku-24 stack")
    _check_files(folder)
    say(f"-----> Using Python {(folder / '.python-version').read_text().strip()} specified in .python-version")
    say("-----> Installing dependencies using 'pip install -r requirements.txt'")
    environment = install(folder / "requirements.txt", cache, say)
    (folder / ".heroku").mkdir()
    (folder / ".heroku" / "python").symlink_to(environment)
    _collect_static(folder, say)
    types = dict(PROCFILE_LINE.findall((folder / "Procfile").read_text()))
    say("-----> Discovering process types")
    say(f"       Procfile declares types -> {', '.join(sorted(types))}")
    return types


def _check_files(folder: Path) -> None:
    found = [name for name in LOCK_FILES if (folder / name).exists()]
    if len(found) != 1:
        fault = f"several package manager files: {', '.join(found)}" if found else "no package manager file"
        raise BuildError(f"Error: {fault}")
    if (folder / "venv").exists() or (folder / ".venv").exists():
        raise BuildError("Error: a virtual environment is in the repository")
    version = (folder / ".python-version").read_text().strip()
    if not PYTHONS.match(version):
        raise BuildError(f"Error: Python {version} is not supported")


def install(requirements: Path, cache: Path, say: Callable[[str], None]) -> Path:
    """A virtual environment with the requirements; one that was made from the same file before is used again."""
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:16]
    environment, done = cache / f"python-{digest}", cache / f"python-{digest}.done"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"python-{digest}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            run([sys.executable, "-m", "venv", "--clear", str(environment)], requirements.parent, {}, say)
            pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            run([*pip, "--disable-pip-version-check", "-r", requirements.name], requirements.parent, _pip_places(), say)
            done.touch()
    return environment


def _pip_places() -> dict[str, str]:
    """Where this machine's pip is told to look for packages."""
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name == "HOME"}


def _collect_static(folder: Path, say: Callable[[str], None]) -> None:
    found = [*folder.glob("manage.py"), *folder.glob("*/manage.py"), *folder.glob("*/*/manage.py")]
    if not found:
        return
    say("-----> $ python " + f"{found[0].relative_to(folder)} collectstatic --noinput")
    run(["python", str(found[0]), "collectstatic", "--noinput"], folder, {}, say)


def environ(folder: Path) -> dict[str, str]:
    """What the buildpack's profile scripts set at run time."""
    return {
        "HOME": str(folder),
        "PATH": f"{folder}/.heroku/python/bin:{SYSTEM_PATH}",
        "PYTHONPATH": str(folder),
        "PYTHONUNBUFFERED": "true",
        "LANG": "en_US.UTF-8",
        "GUNICORN_CMD_ARGS": "--access-logfile -",
        "FORWARDED_ALLOW_IPS": "*",
    }


def web_concurrency(memory: int, given: dict[str, str]) -> dict[str, str]:
    """What the buildpack makes of a memory limit (bytes), unless the app's config has it (WEB_CONCURRENCY.sh)."""
    if "WEB_CONCURRENCY" in given:
        return {}
    number = min(memory // 2**20 // 256, 2 * (os.cpu_count() or 1) + 1)
    return {"WEB_CONCURRENCY": str(max(1, number)), "WEB_CONCURRENCY_SET_BY": "heroku/python"}


def run(command: list[str], folder: Path, extra: dict[str, str], say: Callable[[str], None]) -> None:
    """Run a step of the build. Raises BuildError if it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environ(folder), **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    for line in done.stdout.decode(errors="replace").splitlines():
        say(f"       {line}")
    if done.returncode:
        raise BuildError(f" !     Error: {Path(command[0]).name} ended with exit code {done.returncode}")
