"""`make verify` reaches its targets: a local dyno, a container, ssh, the platforms' clients, and HTTP alone.

So do `make admin` and `make bench`, by the same ways.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from boiler.settings import ROOT
from jobs.visit import Site
from tests.docker import Container, checkout
from tests.dyno import Dyno, free_port
from tests.integration.clients import APP, Clients
from tests.integration.test_admin import ROUTER, admin_page, credentials, make_admin
from tests.needs import needs
from tests.verify.target import visited
from tests.wait import wait_for

# No other test's, which may run on this machine now and show its own.
TOKEN, KEY = secrets.token_urlsafe(32), secrets.token_urlsafe(50)


def verify(**environ: str) -> subprocess.CompletedProcess[str]:
    """Run the recipe of `make verify` with these variables."""
    recipe = (ROOT / "Makefile").read_text().partition("\nverify:")[2].partition("\n\n")[0]
    words = recipe.replace("\\\n", " ").partition("@.venv/bin/python ")[2].split()
    clean = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "BOILER_DIR")}
    return subprocess.run(
        [sys.executable, *words], env={**clean, **environ}, cwd=ROOT, capture_output=True, text=True, check=False
    )


def failed(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of the checks that failed."""
    return [line.removeprefix("FAIL  ") for line in done.stdout.splitlines() if line.startswith("FAIL")]


@pytest.fixture(scope="module")
def deployed(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dyno]:
    """A dyno as on a platform: in a checkout of its own, which alone tells where its socket is."""
    root = tmp_path_factory.mktemp("deployed") / "app"
    checkout(root)
    (root / ".venv").symlink_to(sys.prefix)
    data = {"DATABASE_URL": "", "EMBEDDED_POSTGRES": str(root / ".postgres")}
    environ = {
        "DJANGO_SECRET_KEY": KEY,
        "DJANGO_HTTPS": "1",
        "DJANGO_DEBUG": "0",
        "STATUS_TOKEN": TOKEN,
        "BOILER_DIR": "",
        "VIRTUAL_ENV": "1",
    }
    dyno = Dyno(root.parent / "dyno", {**data, **environ}, root)
    dyno.start("--release").wait_until_healthy()
    yield dyno
    dyno.kill()


@pytest.fixture
def clients(deployed: Dyno, tmp_path: Path) -> str:
    """The PATH with the platforms' clients first."""
    config = {name: deployed.environ[name] for name in ("DJANGO_SECRET_KEY", "PORT", "VIRTUAL_ENV")}
    return Clients(tmp_path / "clients", deployed.root, config).write()


on_platforms = pytest.mark.parametrize(
    "variables",
    [
        {"TARGET": "heroku", "APP": APP},
        {"TARGET": "dokku", "APP": APP, "HOST": "server.example"},
        {"TARGET": "piku", "APP": APP, "HOST": "piku@server.example:2222"},
    ],
    ids=lambda variables: variables["TARGET"],
)


@on_platforms
def test_a_platform_s_client_leads_into_the_dyno(clients: str, variables: dict[str, str]) -> None:
    done = verify(PATH=clients, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "21 passed" in done.stdout


def gets_in(site: Site, **variables: str) -> str:
    """Make an account twice: the password of the second time gets in, the first one's no more; returns it."""
    _, first = credentials(make_admin(NAME="anna.b", **variables))
    again = make_admin(NAME="anna.b", **variables)
    name, second = credentials(again)
    assert again.stdout.startswith("new password: name anna.b, ")
    assert (again.stdout + again.stderr).count(second) == 1
    assert "Parked jobs" not in admin_page(site, name, first)
    assert "Parked jobs" in admin_page(site, name, second)
    return second


@on_platforms
def test_a_platform_s_client_leads_to_an_account(clients: str, deployed: Dyno, variables: dict[str, str]) -> None:
    password = gets_in(Site(deployed.url, headers=ROUTER), PATH=clients, **variables)
    assert password not in deployed.log()


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"TARGET": "heroku", "APP": "nosuch"}, "heroku://nosuch/web.1 can't be reached: ▸    Couldn't find that app."),
        (
            {"TARGET": "dokku", "APP": "nosuch", "HOST": "server.example"},
            "dokku://dokku@server.example/nosuch can't be reached: !     App nosuch does not exist",
        ),
        (
            {"TARGET": "piku", "APP": "nosuch", "HOST": "server.example"},
            "piku://piku@server.example/nosuch can't be reached: Error: app 'nosuch' not found.",
        ),
        (
            {"TARGET": "piku", "APP": APP, "HOST": "elsewhere.example"},
            "can't be reached: ssh: Could not resolve hostname elsewhere.example: Name or service not known",
        ),
        ({"TARGET": "piku", "APP": APP}, "TARGET=piku needs HOST: the server, USER@HOST or HOST"),
        ({"TARGET": "docker", "APP": "nosuch"}, "nosuch"),
        ({"TARGET": "url", "URL": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not answer: "),
        ({"TARGET": "url", "URL": "kitchen.example"}, "URL=kitchen.example is no address: write https://HOST"),
        ({"TARGET": "mars"}, "there is no TARGET=mars: take one of local, docker, "),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_a_target_that_can_t_be_reached_is_one_line_and_no_pass(
    clients: str, variables: dict[str, str], reason: str
) -> None:
    done = verify(PATH=clients, **variables)
    assert done.returncode == 4
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("ERROR: verify: ")
    assert reason in line
    assert "passed" not in done.stdout


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"TARGET": "heroku", "APP": "nosuch"}, "heroku://nosuch/web.1 can't be reached: ▸    Couldn't find that app."),
        (
            {"TARGET": "dokku", "APP": "nosuch", "HOST": "server.example"},
            "dokku://dokku@server.example/nosuch can't be reached: !     App nosuch does not exist",
        ),
        ({"TARGET": "piku", "APP": APP, "HOST": "elsewhere.example"}, "Could not resolve hostname elsewhere.example"),
        ({"TARGET": "dokku", "APP": APP, "HOST": "server.example", "NAME": "$(id)"}, "NAME=$(id): must be of letters"),
        ({"TARGET": "docker", "APP": "nosuch"}, "docker://nosuch: no account made (exit code 1): "),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_no_account_is_made_where_the_way_is_wrong(clients: str, variables: dict[str, str], reason: str) -> None:
    made = make_admin(PATH=clients, **variables)
    assert (made.returncode, made.stdout) == (1, "")
    (line,) = made.stderr.splitlines()
    assert line.startswith("admin: ")
    assert reason in line


def test_a_platform_s_client_that_is_not_installed(tmp_path: Path) -> None:
    done = verify(TARGET="heroku", APP=APP, PATH=str(tmp_path))
    assert (done.returncode, done.stderr.strip()) == (
        4,
        f"ERROR: verify: heroku://{APP}/web.1 can't be reached: there is no `heroku` on PATH: install it",
    )


def test_a_dyno_that_does_not_run_is_one_line(clients: str, deployed: Dyno, tmp_path: Path) -> None:
    program = tmp_path / "clients" / "heroku"
    program.write_text(program.read_text().replace("HOME=", "BOILER_DIR='/nowhere', HOME="))
    done = verify(TARGET="heroku", APP=APP, PATH=clients)
    assert done.returncode == 4
    assert "`app/boil inspect` failed (exit code 1): boil: no dyno of this checkout is running" in done.stderr


def test_url_with_the_token_sees_every_process(deployed: Dyno) -> None:
    done = verify(TARGET="url", URL=deployed.url, STATUS_TOKEN=TOKEN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "21 passed" in done.stdout


def test_url_without_the_token_says_what_it_does_not_check(deployed: Dyno) -> None:
    done = verify(TARGET="url", URL=deployed.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "STATUS_TOKEN is not set: checking only what can be seen from outside" in done.stdout
    assert "3 passed" in done.stdout


def test_url_with_a_wrong_token_is_no_pass(deployed: Dyno) -> None:
    done = verify(TARGET="url", URL=deployed.url, STATUS_TOKEN="wrong")
    assert done.returncode == 4
    assert "/statusz: STATUS_TOKEN is not the one that this app has" in done.stderr


def test_statusz_is_for_those_who_bear_the_token(deployed: Dyno) -> None:
    let_in, stranger = Site(deployed.url, TOKEN), Site(deployed.url)
    for path, method in (("/statusz", "POST"), ("/statusz/worker", "GET")):
        assert stranger.ask(path, method).status == 401
    assert "processes" not in stranger.ask("/statusz", "POST").body
    assert let_in.ask("/statusz").status == 405
    answer = let_in.ask("/statusz", "POST", timeout=60)
    assert answer.status == 200
    for secret in (TOKEN, deployed.environ["DJANGO_SECRET_KEY"]):
        assert secret not in answer.body


def test_ssh_leads_to_a_checkout_on_another_machine(deployed: Dyno, sshd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = f"{os.environ.get('USER') or 'root'}@127.0.0.1"
    variables = {"TARGET": "ssh", "HOST": host, "APP": str(deployed.root), "PATH": sshd}
    done = verify(**variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "21 passed" in done.stdout
    monkeypatch.setenv("PATH", sshd)
    site = visited(variables, print)
    assert site.url == deployed.url
    assert gets_in(site, **variables) not in deployed.log()


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[str]:
    """OpenSSH's server for this user; its value is the PATH of an `ssh` that knows its port and keys."""
    server, client = needs("sshd"), needs("ssh")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    port = free_port()
    (tmp_path / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\n"
        f"StrictModes no\nPidFile none\n"
    )
    known = f"[127.0.0.1]:{port} {(tmp_path / 'host.pub').read_text()}"
    (tmp_path / "known").write_text(known)
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    options = f"-p {port} -i {tmp_path}/user -o UserKnownHostsFile={tmp_path}/known -o IdentitiesOnly=yes"
    program.write_text(f'#!/bin/sh\nexec {client} {options} "$@"\n')
    program.chmod(0o755)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # its privilege separation's folder, made by init scripts otherwise
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([server, "-D", "-e", "-f", str(tmp_path / "config")], stderr=log)
    path = f"{program.parent}:{os.environ['PATH']}"
    user = os.environ.get("USER") or "root"
    try:
        command = [str(program), "-o", "BatchMode=yes", f"{user}@127.0.0.1", "true"]
        wait_for(lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0, "sshd answers", 30)
        yield path
    finally:
        process.terminate()
        process.wait()


@pytest.mark.timeout(900)  # the base image is made of Debian's packages, once
def test_a_container_with_512_mb(app_image: str, tmp_path: Path) -> None:
    container = Container(app_image, environ={"DJANGO_SECRET_KEY": KEY, "STATUS_TOKEN": TOKEN}, memory="512m")
    try:
        url = f"http://{container.address}:5000"
        wait_for(lambda: Site(url).ask("/healthz").status == 200, "the container is healthy", 120)
        done = verify(TARGET="docker", APP=container.name)
        assert done.returncode == 0, done.stdout + done.stderr + container.log()
        assert "21 passed" in done.stdout
        memory = json.loads(container.run("app/boil", "inspect").splitlines()[-1])["memory"]
        assert memory["limit"] == 512 << 20
        print(f"{memory['used'] >> 20} MB of 512 MB")
        gets_in(Site(url, headers=ROUTER), TARGET="docker", APP=container.name)
        words = ["make", "bench", "TARGET=docker", f"APP={container.name}", f"BENCH=--output {tmp_path}"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        figures = json.loads((tmp_path / "course.json").read_text())
        assert figures["url"] == url
        assert figures["hello"]["statuses"].keys() == {"200"}
        assert figures["io"]["done"] == figures["io"]["sent"]
    finally:
        container.remove()


@pytest.fixture
def local(tmp_path: Path) -> dict[str, str]:
    """The settings of a local dyno of this checkout that does not meet others."""
    return {
        "DJANGO_SECRET_KEY": KEY,
        "DATABASE_URL": "",
        "EMBEDDED_POSTGRES": str(tmp_path / "postgres"),
        "BOILER_DIR": f"/tmp/verify-{os.urandom(4).hex()}",
        "PORT": str(free_port()),
        "BIND_ADDRESS": "127.0.0.1",
        "DJANGO_DEBUG": "1",
    }


def test_local_starts_a_dyno_if_none_runs_and_stops_it(local: dict[str, str]) -> None:
    done = verify(**local)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("verify: no dyno runs here: starting one")
    assert "20 passed" in done.stdout
    assert Site(f"http://127.0.0.1:{local['PORT']}").ask("/healthz").status == 0


def test_local_says_why_the_dyno_does_not_start(local: dict[str, str]) -> None:
    done = verify(**local, WEB_CONCURRENCY="many")
    assert done.returncode == 4
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("ERROR: verify: the local dyno does not start: WEB_CONCURRENCY")
