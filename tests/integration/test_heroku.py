"""`make deploy-heroku` from a clone, against the double of Heroku in tests/heroku/."""

from __future__ import annotations

import hashlib
import http.client
import os
import pty
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from boiler import processes
from boiler.settings import ROOT
from tests.clone import GitClone
from tests.dyno import ask
from tests.heroku.api import Double, Fault
from tests.heroku.app import App
from tests.needs import needs
from tests.wait import wait_for

# A build installs all packages once for each user of this machine, and a deployment starts real dynos.
pytestmark = pytest.mark.timeout(600)

SECRET = secrets.token_hex(12)
# Only some of the tests take the time for `make verify`'s checks.
INVENTORY = """
heroku:
  hosts:
    shop:
      verify: {verify}
      config:
        LOG_LEVEL: {level}
        MAIL_PASSWORD: "{{{{ lookup('ansible.builtin.env', 'MAIL_PASSWORD') }}}}"
"""


class Clone(GitClone):
    """A clone that is deployed to the double."""

    def __init__(self, root: Path, double: Double) -> None:
        super().__init__(root)
        self.double = double
        self.write_inventory("info")
        self.first = self.commit()
        self.released = 0  # the release that `first` is in

    def write_inventory(self, level: str, *, verify: bool = False) -> None:
        (self.root / "deploy" / "inventory.yml").write_text(INVENTORY.format(level=level, verify=verify))

    @property
    def environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG")}
        return {**kept, "HOME": str(self.root.parent), "MAIL_PASSWORD": SECRET, **self.double.environ}

    def make(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["make", *words],
            cwd=self.root,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            check=False,
        )
        print(done.stdout, done.stderr)
        return done

    def deploy(self, *words: str, **environ: str) -> str:
        """Deploy, which must succeed; returns what was printed."""
        done = self.make("deploy-heroku", "APP=shop", *words, **environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


class Visitor:
    """Uses a deployed app through the router."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.failed: list[str] = []
        self.served = 0

    def ask(self, path: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
        return ask(self.app.router.server_address[1], path, method, body)

    def jobs(self, **order: Any) -> list[int]:
        status, answer = self.ask("/jobs", "POST", order)
        assert status == 202, answer
        return answer["ids"]

    def states(self, ids: list[int]) -> list[str]:
        return [one["state"] for one in self.ask(f"/jobs?ids={','.join(map(str, ids))}")[1]["jobs"]]

    @contextmanager
    def browsing(self) -> Iterator[None]:
        """Ask for the page again and again, and note what fails."""
        done = threading.Event()

        def browse() -> None:
            while not done.wait(0.1):
                try:
                    status = self.ask("/")[0]
                except (OSError, http.client.HTTPException) as error:
                    status = repr(error)
                self.served += status == 200
                if status != 200:
                    self.failed.append(f"{status}")

        thread = threading.Thread(target=browse)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def current(app: App) -> int:
    assert app.current is not None
    return app.current.version


@pytest.fixture(scope="session")
def heroku_cache(pytestconfig: pytest.Config) -> Path:
    """What builds keep from one run of the tests to the next."""
    return pytestconfig.cache.mkdir("heroku")


@pytest.fixture
def double(postgres: str, heroku_cache: Path) -> Iterator[Double]:
    with Double(postgres, heroku_cache) as made:
        yield made
        assert made.violations == []


@pytest.fixture
def clone(double: Double, tmp_path: Path) -> Clone:
    """A checkout that was never deployed, and an empty Heroku."""
    return Clone(tmp_path / "a clone", double)


@pytest.fixture(scope="module")
def shop(postgres: str, heroku_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    with Double(postgres, heroku_cache) as double:
        yield Clone(tmp_path_factory.mktemp("shop") / "a clone", double)
        assert double.violations == []


@pytest.fixture
def deployed(shop: Clone) -> Clone:
    """A checkout that is deployed as it is; what is asked of the double counts from here."""
    shop.git("reset", "--quiet", "--hard", shop.first)
    shop.git("clean", "--quiet", "--force", "-d")
    app = shop.double.apps.get("shop")
    if app is None or current(app) != shop.released:  # the test before has changed something
        shop.deploy()
        app = shop.double.apps["shop"]
        shop.released = current(app)
    wait_for(lambda: not app.stopping(), "no dyno of the test before is left", 60)
    app.endings.clear()
    shop.double.requests.clear()
    return shop


@pytest.fixture
def app(deployed: Clone) -> App:
    return deployed.double.apps["shop"]


def test_the_first_deployment_ends_with_a_healthy_app_and_the_second_changes_nothing(clone: Clone) -> None:
    clone.write_inventory("info", verify=True)
    started = time.monotonic()
    output = clone.deploy()
    print(f"first deployment: {time.monotonic() - started:.1f} s")
    app = clone.double.apps["shop"]
    assert "Installing dependencies" in output, "the build's output is shown"
    assert "Applying jobs.0001_pgmq" in output, "the release phase's output is shown"
    assert "ok    A job goes round" in output, "it is verified"
    assert app.router.url in output
    assert len(app.config["DJANGO_SECRET_KEY"]) >= 50
    assert len(app.config["STATUS_TOKEN"]) >= 50
    assert app.config["MAIL_PASSWORD"] == SECRET
    visitor = Visitor(app)
    assert visitor.ask("/healthz")[0] == 200
    ids = visitor.jobs(kind="sleep", seconds=0.01, count=20)
    wait_for(lambda: set(visitor.states(ids)) == {"done"}, "the jobs are done")
    assert app.dynos[0].container.limited

    config = dict(app.config)
    clone.double.requests.clear()
    started = time.monotonic()
    output = clone.deploy()
    print(f"second deployment: {time.monotonic() - started:.1f} s")
    assert clone.double.changes() == []
    assert re.search(r"shop +: ok=\d+ +changed=0 ", output)
    assert app.config == config


def test_one_changed_config_value_is_one_patch(deployed: Clone, app: App) -> None:
    deployed.write_inventory("warning")  # deploy/ is for this side alone: nothing to commit, nothing to build
    deployed.deploy()
    assert deployed.double.changes() == ["PATCH /apps/shop/config-vars"]
    assert app.config["LOG_LEVEL"] == "warning"


def test_jobs_in_flight_at_a_deployment_are_done_afterwards(deployed: Clone, app: App) -> None:
    visitor = Visitor(app)
    ids = visitor.jobs(kind="sleep", seconds=12, count=4)  # still run at the restart on a slow machine
    wait_for(lambda: "running" in visitor.states(ids), "a job runs")
    (deployed.root / "README.md").write_text("Another commit.\n")
    deployed.write_inventory("warning")
    deployed.commit()
    deployed.deploy()
    wait_for(lambda: set(visitor.states(ids)) == {"done"}, "all jobs are done", 60)
    wait_for(lambda: len(app.endings) == 2, "both restarts have ended the old dyno", 60)
    assert not any(ending.killed for ending in app.endings)


def test_check_mode_shows_names_and_changes_nothing(deployed: Clone, app: App) -> None:
    (deployed.root / "README.md").write_text("Another commit.\n")
    deployed.write_inventory("warning")
    head = deployed.commit()
    output = deployed.deploy("CHECK=1", "SIZE=standard-2x")
    assert "+LOG_LEVEL: set anew" in output
    assert f"+{head}" in output
    assert "+web: 1 x standard-2x" in output
    assert SECRET not in output
    assert deployed.double.changes() == []


def test_uncommitted_changes_are_named_and_refused_unless_dirty(deployed: Clone, app: App) -> None:
    (deployed.root / "README.md").write_text("Not committed.\n")
    (deployed.root / "new.txt").write_text("New.\n")
    refused = deployed.make("deploy-heroku", "APP=shop")
    assert refused.returncode != 0
    assert "not committed, so it would not be deployed: README.md, new.txt" in refused.stderr
    assert deployed.double.requests == []
    deployed.deploy("DIRTY=1")
    assert deployed.double.changes() == []


def test_a_failed_build_or_release_leaves_the_old_one_serving(deployed: Clone, app: App) -> None:
    visitor, before = Visitor(app), current(app)
    with visitor.browsing():
        settings = deployed.root / "app" / "config" / "settings.py"
        good = settings.read_text()
        settings.write_text(good + "\nimport nonsense_that_is_nowhere\n")
        deployed.commit()
        failed = deployed.make("deploy-heroku", "APP=shop")
        assert failed.returncode != 0
        assert "No module named 'nonsense_that_is_nowhere'" in failed.stdout
        assert "the build failed: the release before goes on running" in failed.stderr
        settings.write_text(good)

        (deployed.root / "Procfile").write_text("web: app/boil start\nrelease: python app/manage.py nonsense\n")
        deployed.commit()
        failed = deployed.make("deploy-heroku", "APP=shop")
        assert failed.returncode != 0
        assert "Unknown command: 'nonsense'" in failed.stdout
        assert "failed: the one before goes on running" in failed.stderr
    assert current(app) == before
    assert visitor.failed == []
    assert visitor.served > 5
    assert len(app.endings) == 0


def test_a_dyno_that_does_not_start_ends_the_deployment_with_its_state(deployed: Clone, app: App) -> None:
    (deployed.root / "LocalProcfile").write_text("web: nonsense\n")
    deployed.commit()
    failed = deployed.make("deploy-heroku", "APP=shop")
    assert failed.returncode != 0
    assert "web.1 is crashed" in failed.stderr
    assert "heroku logs" in failed.stderr


def test_scaled_out_and_in_again_no_job_is_lost(deployed: Clone, app: App) -> None:
    visitor = Visitor(app)

    def scale(which: str) -> str:
        done = deployed.make(which, "TARGET=heroku", "APP=shop")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def inner_processes() -> dict[str, set[str]]:
        """For each dyno the names of the inner processes in it, as their titles tell."""
        return {
            dyno.name: {
                title.partition(":")[0]
                for title in map(processes.title, dyno.container.pids())
                if re.match(r"(web|worker|beat): ", title)
            }
            for dyno in app.dynos
        }

    deployed.write_inventory("info", verify=True)
    ids = visitor.jobs(kind="sleep", seconds=1, count=8)
    assert "ok    Every line of LocalProcfile runs" in scale("scale-out")
    apart = {"web.1": {"web"}, "worker.1": {"worker"}, "beat.1": {"beat"}}
    wait_for(lambda: inner_processes() == apart, "each process has a dyno of its own", 60)
    ids += visitor.jobs(kind="sleep", seconds=1, count=8)
    deployed.double.requests.clear()
    assert re.search(r"^shop +: ok=\d+ +changed=0 ", scale("scale-out"), re.MULTILINE)
    deployed.deploy()
    assert deployed.double.changes() == [], "a deployment leaves it scaled out"

    scale("scale-in")
    packed = {"web.1": {"web", "worker", "beat"}}
    wait_for(lambda: inner_processes() == packed, "one packed dyno runs everything", 60)
    wait_for(lambda: set(visitor.states(ids)) == {"done"}, "all jobs are done", 120)
    wait_for(lambda: not app.stopping(), "the old dynos have ended", 60)
    assert not any(ending.killed for ending in app.endings)


def test_after_a_cut_connection_the_build_output_goes_on_where_it_was_and_repetitions_are_shown(clone: Clone) -> None:
    clone.double.faults = [Fault("GET", "/streams/", times=3), Fault("GET", "/builds/", 503, "unavailable", times=2)]
    output = clone.deploy()
    assert "Heroku answers 503: trying again in 2 s" in output
    assert all(fault.times == 0 for fault in clone.double.faults)
    for line in ("-----> Building on the Heroku-24 stack", "-----> Discovering process types", "jobs.0001_pgmq"):
        assert output.count(line) == 1, line


def test_a_refused_database_ends_in_one_line_and_the_next_run_goes_on(clone: Clone) -> None:
    clone.double.faults = [
        Fault("POST", "/addons", 402, "verification_needed", "Please verify your account to install this add-on")
    ]
    failed = clone.make("deploy-heroku", "APP=shop")
    assert failed.returncode != 0
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("fatal:")]
    assert "402 verification_needed: Please verify your account" in line
    assert "https://heroku.com/verify" in line
    clone.deploy()


def test_no_secret_is_printed_or_on_a_command_line(clone: Clone) -> None:
    seen: set[bytes] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    seen.add(path.read_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        clone.write_inventory("info", verify=True)
        output = clone.deploy(ANSIBLE_VERBOSITY="4", ANSIBLE_DIFF_ALWAYS="1")
    finally:
        done.set()
        thread.join()
    config = clone.double.apps["shop"].config
    hidden = [
        SECRET,
        clone.double.key,
        *(config[name] for name in ("DJANGO_SECRET_KEY", "STATUS_TOKEN", "DATABASE_URL")),
    ]
    assert any(b"ansible-playbook" in line for line in seen)
    for secret in hidden:
        assert secret not in output
        assert not any(secret.encode() in line for line in seen)
        grep = subprocess.run(["grep", "-rlF", secret, str(clone.root)], capture_output=True, text=True, check=False)
        assert grep.stdout == ""


@pytest.fixture
def heroku(deployed: Clone, heroku_cache: Path, tmp_path: Path) -> Callable[..., str]:
    """Heroku's own command line, as npm has it; `heroku("ps", "--app", "shop")` returns what it prints."""
    npm = needs("npm")
    lock = ROOT / "tests" / "heroku" / "package-lock.json"
    folder = heroku_cache / f"cli-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    if not (folder / "done").exists():
        folder.mkdir(exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(lock.with_name(name), folder)
        options = ["--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run([npm, "ci", *options], cwd=folder, check=True, capture_output=True)
        (folder / "done").touch()
    url = deployed.double.url
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),  # it writes into git's configuration there
        "HEROKU_HOST": url,
        "HEROKU_API_KEY": deployed.double.key,
        "HEROKU_PARTICLEBOARD_URL": url,
        "HEROKU_BUILDPACK_REGISTRY_URL": url,
        "DISABLE_TELEMETRY": "true",
    }

    def run(*words: str) -> str:
        command = [str(folder / "node_modules" / ".bin" / "heroku"), *words]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)
        print(done.stdout, done.stderr)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


def test_herokus_own_command_line_agrees_with_the_playbook(
    deployed: Clone, app: App, heroku: Callable[..., str]
) -> None:
    assert re.search(r"^30$", heroku("config:get", "DYNO_GRACE", "--app", "shop"), re.MULTILINE)
    assert re.search(r"web\.1: up ", heroku("ps", "--app", "shop"))
    assert f"Current: v{current(app)}" in heroku("releases", "--app", "shop")
    assert "Running migrations" in heroku("releases:output", "--app", "shop")
    assert "heroku-postgresql:essential-0" in heroku("apps:info", "--app", "shop")
    heroku("config:set", "ADDED=by hand", "--app", "shop")
    heroku("ps:scale", "web=1:standard-2x", "--app", "shop")
    wait_for(lambda: app.config.get("ADDED") == "by hand" and app.releases[-1].current, "it is released")
    deployed.double.requests.clear()
    deployed.deploy()
    assert deployed.double.changes() == ["PATCH /apps/shop/formation"], "what the inventory names is changed back"
    assert app.config["ADDED"] == "by hand"


def destroy(clone: Clone, typed: str) -> int:
    """Run `make destroy-heroku` at a terminal and type an answer; returns the exit code."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        ["make", "destroy-heroku", "APP=shop"],
        cwd=clone.root,
        env=clone.environ,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    shown = b""
    with suppress(OSError):  # EIO: the terminal's other side is closed
        while piece := os.read(leader, 4096):
            shown += piece
            if b"Type the app's name" in shown and typed:
                os.write(leader, f"{typed}\n".encode())
                typed = ""
    os.close(leader)
    print(shown.decode(errors="replace"))
    return process.wait(60)


def test_destroy_asks_for_the_name(clone: Clone) -> None:
    clone.double.create_app({"name": "shop"})
    assert destroy(clone, "shopp") != 0
    assert clone.make("destroy-heroku", "APP=shop").returncode != 0, "without a terminal nobody has confirmed"
    assert "shop" in clone.double.apps
    assert destroy(clone, "shop") == 0
    assert clone.double.apps == {}


def test_the_double_can_be_tried_by_hand(clone: Clone) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.heroku"], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        lines = [process.stdout.readline().removeprefix("export ").strip() for _ in range(2)]
        environ = dict(line.split("=", 1) for line in lines)
        assert "+app: shop" in clone.deploy("CHECK=1", **environ)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_the_pages_name_the_commands_that_are_typed_here() -> None:
    pages = (ROOT / "README.md").read_text() + (ROOT / "docs" / "heroku.md").read_text()
    named = {line.strip() for line in re.findall(r"make (?:deploy|destroy|scale)-[^`\n]+ APP=shop[^`\n]*", pages)}
    assert {line for line in named if "heroku" in line} == {
        "make deploy-heroku APP=shop",
        "make deploy-heroku APP=shop CHECK=1",
        "make deploy-heroku APP=shop SIZE=standard-2x",
        "make scale-out TARGET=heroku APP=shop",
        "make scale-in TARGET=heroku APP=shop",
        "make destroy-heroku APP=shop",
    }


@pytest.mark.parametrize("target", ["deploy-heroku", "destroy-heroku"])
def test_a_forgotten_name_is_asked_for(clone: Clone, target: str) -> None:
    forgotten = clone.make(target)
    assert forgotten.returncode != 0
    assert f"say which deployment: make {target} APP=name" in forgotten.stderr
