"""How each TARGET is reached, and what is seen of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import testinfra
from testinfra.host import Host

from boiler.cli import complete_environment
from boiler.settings import ROOT
from jobs.visit import Site, look
from tests.verify.backends import DokkuBackend, HerokuBackend, PikuBackend, UnreachableError
from tests.wait import wait_for

INSPECT = "app/boil inspect"
INSPECTION = 60.0  # seconds for an answer of /statusz; an inspection takes at most some 20
START = 90  # seconds until a dyno started here must be healthy; making the database is among them
# Variables of make that each target needs.
NEEDS = {
    "local": (),
    "docker": ("APP",),
    "ssh": ("HOST", "APP"),
    "heroku": ("APP",),
    "dokku": ("HOST", "APP"),
    "piku": ("HOST", "APP"),
    "url": ("URL",),
}
MEANING = {
    "APP": "the app's name",
    "HOST": "the server, USER@HOST or HOST",
    "URL": "the deployment's address, https://…",
}
APP_OF = {"docker": "the container's name", "ssh": "the checkout's folder there"}


@dataclass(frozen=True)
class Seen:
    """All that is known of a target. `inside` is empty where nothing but the address and no token was given."""

    name: str
    inside: Mapping[str, Any]
    outside: Mapping[str, Any] | None
    deployment: bool


def look_at(environ: Mapping[str, str], say: Callable[[str], None]) -> Seen:
    """Look at the target that the variables TARGET, APP, HOST, URL, PAGE and STATUS_TOKEN name.

    Raises UnreachableError with one line that says what is wrong and what to do.
    """
    target, url = chosen(environ), address(environ)
    page = environ.get("PAGE") or "/"
    if target == "url":
        return by_url(Site(url, environ.get("STATUS_TOKEN", ""), page=page), say)
    host, command = reach(target, environ)
    with local_dyno(say) if target == "local" else nullcontext():
        say(f"looking into {host.backend.get_pytest_id()}: some 5 to 20 s")
        document = inspect(host, command)
        outside = look(Site(url, page=page)) if url else None
    if outside and not outside["health"]["status"]:
        raise UnreachableError(f"{url} does not answer: {outside['health']['error']}")
    return Seen(host.backend.get_pytest_id(), document, outside, target != "local")


def chosen(environ: Mapping[str, str]) -> str:
    """The target that the variables name. Raises UnreachableError if there is no such one, or something is missing."""
    target = environ.get("TARGET") or "local"
    if target not in NEEDS:
        raise UnreachableError(f"there is no TARGET={target}: take one of {', '.join(NEEDS)}")
    for name in NEEDS[target]:
        if not environ.get(name):
            meaning = APP_OF.get(target, MEANING[name]) if name == "APP" else MEANING[name]
            raise UnreachableError(f"TARGET={target} needs {name}: {meaning}")
    return target


def address(environ: Mapping[str, str]) -> str:
    """The variable URL; "" if it is not set. Raises UnreachableError if it is no address."""
    url = environ.get("URL", "")
    if url and not re.fullmatch(r"https?://[^/\s]+.*", url):
        raise UnreachableError(f"URL={url} is no address: write https://HOST")
    return url


def visited(environ: Mapping[str, str], say: Callable[[str], None]) -> Site:
    """Where a visitor gets to the target's web: URL, or what the target itself says.

    A dyno here, in a container or on another machine is visited at its own port, with the headers that a router
    would add. Raises UnreachableError.
    """
    target, url = chosen(environ), address(environ)
    if url:
        return Site(url)
    if target == "local":
        complete_environment(os.environ)
        return Site.inside()
    host, command = reach(target, environ)
    name = host.backend.get_pytest_id()
    say(f"asking {name} for its address: some 5 to 20 s")
    inside = inspect(host, command)
    if target in ("docker", "ssh"):
        machine = container_address(environ["APP"]) if target == "docker" else server(environ["HOST"])
        return Site(f"http://{machine}:{inside['port']}", headers=inside["headers"])
    called = inside["headers"]["Host"]
    if called in ("localhost", "127.0.0.1"):
        raise UnreachableError(f"{name}: DJANGO_ALLOWED_HOSTS names no host that leads there: give URL=https://…")
    return Site(f"{'https' if inside['settings']['https'] else 'http'}://{called}")


def container_address(name: str) -> str:
    """A container's address on Docker's network; this machine's if it has none of its own."""
    form = "{{range .NetworkSettings.Networks}}{{println .IPAddress}}{{end}}"
    done = testinfra.get_host("local://").run("docker inspect --format=%s %s", form, name)
    return next(iter(done.stdout.split()), "127.0.0.1")


def server(host: str) -> str:
    """The server in the variable HOST: `USER@HOST:PORT` without the account and ssh's port."""
    return host.rpartition("@")[2].partition(":")[0]


def reach(target: str, environ: Mapping[str, str], words: str = INSPECT) -> tuple[Host, str]:
    """The target's host for testinfra, and the command that runs these words of plain shell in the dyno's folder."""
    app, name = environ.get("APP", ""), environ.get("HOST", "")
    there = {
        "local": lambda: testinfra.get_host("local://"),
        "docker": lambda: testinfra.get_host(f"docker://{app}"),
        "ssh": lambda: testinfra.get_host(f"ssh://{name}", ssh_extra_args="-o BatchMode=yes", controlpersist=0),
        "heroku": lambda: Host(HerokuBackend(app)),
        "dokku": lambda: Host(DokkuBackend(name if "@" in name else f"dokku@{name}", app)),
        "piku": lambda: Host(PikuBackend(name if "@" in name else f"piku@{name}", app)),
    }[target]()
    folder = {"local": str(ROOT), "ssh": app}.get(target)
    command = there.backend.quote(f"cd %s && {words}", folder) if folder else words
    return there, command


def inspect(host: Host, command: str) -> dict[str, Any]:
    """The document that `boil inspect` prints there. Raises UnreachableError with the reason if there is none."""
    try:
        done = host.run(command)
    except RuntimeError as error:
        result = error.args[0] if error.args else ""  # testinfra's ssh raises its result
        lines = getattr(result, "stderr", str(result)).strip().splitlines() or ["no answer"]
        raise UnreachableError(f"{host.backend.get_pytest_id()} can't be reached: {lines[-1]}") from None
    lines = done.stdout.strip().splitlines()
    with suppress(ValueError, IndexError):
        document = json.loads(lines[-1])
        if isinstance(document, dict):
            return document
    said = (done.stderr.strip().splitlines() or lines or ["nothing"])[-1]
    raise UnreachableError(f"{host.backend.get_pytest_id()}: `{INSPECT}` failed (exit code {done.rc}): {said}")


def by_url(site: Site, say: Callable[[str], None]) -> Seen:
    """What can be seen over HTTP: with the token, what the dyno that answers sees of itself, too."""
    inside: dict[str, Any] = {}
    if site.token:
        say(f"looking into {site.url}: some 5 to 20 s")
        answer = site.ask("/statusz", "POST", INSPECTION)
        inside = answer.json()
        if answer.status != 200 or "plan" not in inside:
            raise UnreachableError(f"{site.url}/statusz: {_why_not(answer.status, inside, answer.body)}")
    else:
        say("STATUS_TOKEN is not set: checking only what can be seen from outside, not one process")
    workers = sum(one["fewest"] for one in inside.get("plan", ()) if one["kind"] == "gunicorn")
    outside = look(site, workers, inside.get("dyno", ""))
    if not outside["health"]["status"]:
        raise UnreachableError(f"{site.url} does not answer: {outside['health']['error']}")
    if inside:
        inside["web"] = outside
    return Seen(site.url, inside, outside, deployment=True)


def _why_not(status: int, document: Mapping[str, Any], body: str) -> str:
    if "error" in document:
        return document["error"]
    if status == 404:
        return "not found: is this Double Boiler, started by `app/boil start`?"
    return f"answered {status}" if status else f"no answer: {body}"


@contextmanager
def local_dyno(say: Callable[[str], None]) -> Iterator[None]:
    """The local dyno: the one that runs, or one that runs as long as this context."""
    boil = [str(ROOT / "app" / "boil")]
    asked = subprocess.run([*boil, "status"], capture_output=True, check=False)
    if asked.returncode == 0:
        yield
        return
    say("no dyno runs here: starting one")
    with tempfile.TemporaryFile(prefix="verify-dyno-") as log:
        process = subprocess.Popen([*boil, "start", "--release"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            complete_environment(os.environ)  # as the dyno does it, to know its port
            wait_for(partial(_is_up, process, Site.inside()), "/healthz answers 200", START)
            yield
        except AssertionError as error:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()
            reason = next((line for line in lines if line.startswith("boil: ")), lines[-1] if lines else str(error))
            raise UnreachableError(f"the local dyno does not start: {reason.removeprefix('boil: ')}") from None
        finally:
            process.terminate()
            process.wait()


def _is_up(process: subprocess.Popen[bytes], site: Site) -> bool:
    """Whether the dyno that was started here is well. Raises AssertionError if it has ended."""
    assert process.poll() is None, f"ended with exit code {process.returncode}"
    return site.ask("/healthz").status == 200
