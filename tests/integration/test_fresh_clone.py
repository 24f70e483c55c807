"""The README's commands, typed by a new user: a fresh clone, nothing installed, paths with spaces."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from boiler.settings import ROOT
from tests.dyno import Dyno, free_port
from tests.needs import needs
from tests.wait import wait_for

# Downloads all packages, once for each user: some 30 s each.
pytestmark = pytest.mark.timeout(600)
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"

MODELS = "from django.db import models\n\n\nclass Thing(models.Model):\n    name = models.TextField()\n"
TASKS = (
    "from celery import shared_task\n\nfrom .models import Thing\n\n\n"
    "@shared_task\ndef make(name):\n    Thing.objects.create(name=name)\n"
)


class Clone:
    """A checkout of its own, used by a user with an empty home."""

    def __init__(self, place: Path, user: str) -> None:
        self.root = place / "double boiler"
        self.port = free_port()
        self.user = ["setpriv", "--reuid", user, "--regid", "nogroup", "--clear-groups", "--"] if user != "root" else []
        self.environ = {"HOME": str(place / "home"), "PATH": PATH, "PORT": str(self.port), "LANG": "C.UTF-8"}
        (place / "home").mkdir()
        self._copy_files()
        if user != "root":
            subprocess.run(["chown", "-R", f"{user}:nogroup", str(place)], check=True)

    def _copy_files(self) -> None:
        """What git has or would take of the checkout under test, so that changes not yet committed are in it."""
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        for name in listed.decode().split("\0"):
            if name and (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.root / name)

    def type(self, line: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Type a line at this user's shell in the checkout."""
        command = [*self.user, "/bin/sh", "-c", line]
        environ = {**self.environ, **environ}
        return subprocess.run(
            command, cwd=self.root, env=environ, capture_output=True, text=True, timeout=300, check=False
        )

    def start(self, line: str, **environ: str) -> Dyno:
        """Type a line that runs until it is interrupted; returns when the page is there."""
        dyno = Dyno(self.root.parent / f"log{os.urandom(2).hex()}", {"PORT": str(self.port)}, self.root)
        with dyno.log_file.open("ab") as log:
            dyno.process = subprocess.Popen(
                [*self.user, "/bin/sh", "-c", line],
                cwd=self.root,
                env={**self.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(dyno.is_healthy, "/healthz answers 200", 240)
        return dyno

    def interrupt(self, dyno: Dyno) -> None:
        """Ctrl-C: SIGINT to the foreground process group."""
        os.killpg(dyno.pid, signal.SIGINT)
        dyno.process.wait(60)


@pytest.fixture(params=["root", "nobody"])
def clone(request: pytest.FixtureRequest) -> Iterator[Clone]:
    if os.environ.get("CI") != "true":
        pytest.skip("downloads all packages: runs with CI=true")
    if os.geteuid() != 0:
        pytest.skip("becomes root and an ordinary user in turn: needs root")
    needs("setpriv")
    place = Path(tempfile.mkdtemp(prefix="a clone "))
    place.chmod(0o755)
    made = Clone(place, request.param)
    yield made
    made.type("app/boil stop")
    shutil.rmtree(place)


def test_a_new_user_runs_every_command_of_the_readme(clone: Clone) -> None:
    typed = ["make run", "make test"]  # `make test` is what runs this
    dyno = clone.start("make run")
    status, posted = dyno.post("/jobs", {"kind": "sleep", "seconds": 0.001, "count": 1000})
    assert status == 202
    last = posted["ids"][-1]
    wait_for(lambda: dyno.get(f"/jobs/{last}")[1]["state"] == "done", "1,000 jobs are done", 60)

    for line, expected in {
        "app/boil status": "running",
        "app/boil status --json": '"state": "running"',
        "app/boil restart worker": "worker restarted",
        "app/boil check": "are good",
        "app/boil plan": "in use under full load",
        "app/boil plan --memory 512m --cpus 1": "WORKER_CONCURRENCY=4",
        "app/boil run python app/manage.py showmigrations": "[X] 0001_",
        "make verify": "20 passed",
        "make admin": "account made: name admin, password ",
    }.items():
        answer = clone.type(line)
        assert answer.returncode == 0, answer.stderr
        assert expected in answer.stdout
        typed.append(line)

    # An app of the user's own, with a model and a task, while the dyno runs and then in it.
    for line in ("mkdir app/shop", "touch app/shop/__init__.py"):
        assert clone.type(line).returncode == 0
        typed.append(line)
    settings = clone.root / "app" / "config" / "settings.py"
    settings.write_text(settings.read_text().replace('    "demo",\n', '    "demo",\n    "shop",\n'))
    (clone.root / "app" / "shop" / "models.py").write_text(MODELS)
    (clone.root / "app" / "shop" / "tasks.py").write_text(TASKS)
    clone.interrupt(dyno)
    line = "app/boil run python app/manage.py makemigrations shop"
    assert "Create model Thing" in clone.type(line).stdout
    typed.append(line)

    # The second start: nothing is installed, and all data is still there.
    dyno = clone.start("make run", PIP_NO_INDEX="1")
    assert dyno.get(f"/jobs/{last}")[1]["state"] == "done"
    code = "from shop.tasks import make; make.delay('pan')"
    assert clone.type(f'app/boil run python app/manage.py shell -c "{code}"').returncode == 0
    count = "from shop.models import Thing; print('things', Thing.objects.filter(name='pan').count())"
    wait_for(
        lambda: "things 1" in clone.type(f'app/boil run python app/manage.py shell -c "{count}"').stdout,
        "the job of the user's own app is done",
    )
    line = "app/boil stop"
    assert clone.type(line).stdout.endswith("stopped\n")
    typed.append(line)
    assert dyno.process.wait(30) == 0

    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = {line for block in blocks for line in block.splitlines()}
    # Typed in the platforms' own tests, with hosts that are there.
    platforms = {line for line in lines if re.match(r"make (deploy|destroy|scale)-", line)}
    assert lines - platforms == set(typed)


def test_plain_honcho_runs_localprocfile(database_url: str, tmp_path: Path) -> None:
    dyno = Dyno(tmp_path / "honcho", {"DATABASE_URL": database_url})
    migrate = [sys.executable, "app/manage.py", "migrate", "--verbosity", "0"]
    subprocess.run(migrate, cwd=ROOT, env=dyno.environ, check=True)
    programs = Path(sys.executable).parent
    dyno.environ["PATH"] = f"{programs}:{dyno.environ['PATH']}"
    with dyno.log_file.open("ab") as log:
        dyno.process = subprocess.Popen(
            [str(programs / "honcho"), "start", "-f", "LocalProcfile"],
            cwd=ROOT,
            env=dyno.environ,
            stdout=log,
            stderr=log,
        )
    dyno.wait_until_healthy()
    (job,) = dyno.post("/jobs", {"kind": "sleep", "seconds": 0})[1]["ids"]
    wait_for(lambda: dyno.get(f"/jobs/{job}")[1]["state"] == "done", "the job is done")
    dyno.process.terminate()
    dyno.process.wait(30)
