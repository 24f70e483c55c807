"""The commands of `app/boil`."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from honcho.environ import parse as parse_dotenv

from . import init, postgres, preflight, settings, sizing, status
from .image import Image, name_for
from .inner import Inner, Kind
from .output import Output
from .procfile import Entry
from .settings import ROOT
from .supervisor import Supervisor
from .units import as_duration, as_size, size


class CommandError(Exception):
    """A command that can't be carried out; each argument is one line for the user."""


def main(argv: list[str]) -> int:
    """Run one command; returns the exit code. Mistakes are printed to stderr, one line each."""
    arguments = _parser().parse_args(argv)
    try:
        complete_environment(os.environ)
        return arguments.run(arguments)
    except CommandError as error:
        lines = error.args
    except (settings.SettingError, status.RuntimeDirError, postgres.EmbeddedError) as error:
        lines = (str(error),)
    for line in lines:
        print(f"boil: {line}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="boil", description="Run the processes of LocalProcfile in one dyno.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    start = add("start", _start, "start the processes of LocalProcfile and watch over them")
    start.add_argument("names", nargs="*", metavar="NAME", help="only these")
    start.add_argument("--release", action="store_true", help="run Procfile's release command first")
    add("status", _status, "show what runs").add_argument("--json", action="store_true", help="as JSON")
    add("restart", _restart, "stop and start one process").add_argument("name", metavar="NAME")
    add("stop", _stop, "stop the dyno, jobs and requests in flight first")
    add("inspect", _inspect, "look into the running dyno and send jobs round, as `make verify` does; JSON")
    add("check", _check, "report every mistake in the files and settings; start nothing")
    plan = add("plan", _plan, "show how many of each process fit, and why")
    plan.add_argument("--memory", type=size, metavar="SIZE", help="for a dyno of this size, like 512m")
    plan.add_argument("--cpus", type=float, metavar="NUMBER", help="for so many CPUs")
    plan.add_argument("--connections", type=int, metavar="NUMBER", help="for so many database connections")
    plan.add_argument("--json", action="store_true", help="as JSON")
    release = add("release", _release, "run the release command, unless RELEASE_AT_START leaves it to the dyno's start")
    release.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its words")
    once = add("run", _run, "run one command in the dyno's environment")
    once.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its words")
    return parser


def complete_environment(environ: MutableMapping[str, str]) -> None:
    """Add what .env says and is not set, and put this Python's programs first on PATH."""
    dotenv = ROOT / ".env"
    if dotenv.is_file():
        for name, value in parse_dotenv(dotenv.read_text(encoding="utf-8")).items():
            environ.setdefault(name, value)
    # An empty setting counts as unset, but gunicorn takes an empty WEB_CONCURRENCY for a number.
    for name in settings.SETTINGS:
        if environ.get(name) == "":
            del environ[name]
    # Set by Heroku's buildpack, not by the user: a guess for a web that has the whole dyno to itself, and a log line
    # for each request, which Heroku's router has written already.
    if environ.pop("WEB_CONCURRENCY_SET_BY", None):
        environ.pop("WEB_CONCURRENCY", None)
    if environ.get("GUNICORN_CMD_ARGS") == "--access-logfile -":
        del environ["GUNICORN_CMD_ARGS"]
    environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
    environ["PYTHONUNBUFFERED"] = "1"


def _mistakes(names: list[str]) -> tuple[list[Entry], list[str]]:
    entries, mistakes = preflight.local_procfile(ROOT, names, os.environ)
    lines = [str(mistake) for mistake in [*mistakes, *preflight.platform_procfile(ROOT)]]
    return entries, lines + preflight.wrong_settings(os.environ)


def _check(_arguments: argparse.Namespace) -> int:
    entries, lines = _mistakes([])
    if lines:
        raise CommandError(*lines)
    print(f"LocalProcfile, Procfile and settings are good: {', '.join(entry.name for entry in entries)}")
    return 0


def _start(arguments: argparse.Namespace) -> int:
    names = arguments.names or settings.get("DYNO_RUNS")
    entries, lines = _mistakes(names)
    serves = any(entry.name == "web" for entry in entries)
    if not lines and serves and (taken := preflight.port_in_use(os.environ)):
        lines.append(taken)
    if lines:
        raise CommandError(*lines)
    folder = settings.runtime_dir()
    status.make_private(folder)
    _lock(folder)
    os.environ["PORT"] = str(settings.get("PORT"))
    os.environ["BOILER_STATUS"] = str(folder / "status")
    os.environ["STATUS_TOKEN"] = settings.get("STATUS_TOKEN") or secrets.token_urlsafe(32)
    embedded = None if settings.get("DATABASE_URL") else _embedded()
    # Of dynos that share a database, the one with the web process migrates it.
    inners = _inners(entries, embedded, release=arguments.release or (serves and settings.get("RELEASE_AT_START")))

    def supervise(pipe: int, groups: init.Groups) -> int:
        all_inners = _with_images(inners)
        supervisor = Supervisor(
            all_inners,
            output=Output(sys.stdout.fileno(), ["boiler", *(inner.name for inner in all_inners)]),
            socket_path=folder / "status",
            grace=settings.get("DYNO_GRACE"),
            parent_pipe=pipe,
            only=names,
            note_groups=groups.write,
            database_ready=embedded.serves if embedded else lambda: True,
        )
        return supervisor.run()

    return init.run(supervise)


def _lock(folder: Path) -> None:
    """Take the lock that tells that a boiler runs here; it lasts until init and supervisor are gone."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CommandError(
            "a dyno of this checkout is running: stop it with `app/boil stop`, or set BOILER_DIR for a second one"
        ) from None


def _embedded() -> postgres.Embedded:
    """The embedded PostgreSQL, ready to be started; everything below gets to it by DATABASE_URL."""
    folder = settings.runtime_dir()
    status.make_private(folder)
    embedded = postgres.Embedded(settings.embedded_dir(), folder)
    if not embedded.exists():
        print(f"boil: making the embedded PostgreSQL in {embedded.data}", file=sys.stderr)
    embedded.prepare(settings.get("DATABASE_WAIT"))
    os.environ["DATABASE_URL"] = settings.database_url()
    return embedded


def _inners(entries: list[Entry], embedded: postgres.Embedded | None, *, release: bool) -> list[Inner]:
    """All that the dyno starts, in order: the database, what must have run before, the processes."""
    environ = dict(os.environ)
    inners = []
    if embedded:
        inners.append(
            Inner(
                Entry("postgres", "postgres (embedded)"),
                postgres.environ(),
                Kind.DATABASE,
                argv=embedded.argv(),
                pass_fds=(embedded.lock_fd,),
            )
        )
    ready = "python app/manage.py ready"
    if release:
        line = _release_line()
        if not embedded:
            inners.append(Inner(Entry("ready", f"{ready} --database-only"), environ, Kind.ONCE))
        inners.append(Inner(line, {**environ, "RELEASE_AT_START": "0"}, Kind.ONCE))
    else:
        inners.append(Inner(Entry("ready", ready), environ, Kind.ONCE))
    return inners + [Inner(entry, environ) for entry in entries]


def _with_images(inners: list[Inner]) -> list[Inner]:
    """The same with the images that they are forked from, in the order in which they are needed.

    What runs before the processes is forked from the first of them: it may run anywhere, and the first is there first.
    """
    if not settings.get("BOILER_IMAGE"):
        return inners
    names = {inner.name: name_for(inner.entry.argv(inner.environ), inner.environ) for inner in inners}
    processes = [inner for inner in inners if inner.kind is Kind.PROCESS]
    shared = Image("shared") if settings.get("SHARED_IMPORTS") else None
    images = {name: Image(name) for inner in processes if (name := names[inner.name])}
    first = next(iter(images.values()), None)
    for inner in inners:
        inner.source = first if inner.kind is Kind.ONCE and names[inner.name] else images.get(names[inner.name])
    # On one CPU two images that load at the same time would both be late, and the web with them.
    together = sizing.here(settings.get("DYNO_RAM")).cpus > 1
    ordered = [_image_process(shared)] if shared and first else []
    ordered += [_image_process(image, shared) for image in images.values() if together or image is first]
    for inner in inners:
        if inner.source and inner.source not in [before.image for before in ordered]:
            ordered.append(_image_process(inner.source, shared))
        ordered.append(inner)
    return ordered


def _image_process(image: Image, source: Image | None = None) -> Inner:
    entry = Entry(f"image-{image.name}", f"image ({image.name})")
    return Inner(entry, dict(os.environ), Kind.IMAGE, argv=[], image=image, source=source)


def _release_line() -> Entry:
    entries, _ = preflight.procfile.read(ROOT / "Procfile")
    for entry in entries:
        if entry.name == "release":
            return entry
    raise CommandError("Procfile: no `release`: add the line `release: app/boil release python app/manage.py migrate`")


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    try:
        answer = status.ask(settings.runtime_dir() / "status", request, timeout=10)
    except (FileNotFoundError, ConnectionRefusedError):
        raise CommandError(
            "no dyno of this checkout is running: start it with `make run` or `app/boil start`"
        ) from None
    except OSError as error:
        raise CommandError(f"the boiler does not answer ({error}): the machine may be busy, try again") from None
    if "error" in answer:
        raise CommandError(answer["error"])
    return answer


def _status(arguments: argparse.Namespace) -> int:
    answer = _ask({"command": "status"})
    if arguments.json:
        print(json.dumps(answer, indent=2))
        return 0
    print("\n".join(_status_lines(answer)))
    return 0


def _status_lines(answer: dict[str, Any]) -> list[str]:
    boiler = answer["boiler"]
    row = "{:<10} {:>8} {:<9} {:>8} {:>9} {:>9}  {}"
    lines = [
        f"dyno {boiler['state']} for {as_duration(boiler['uptime'])}, "
        f"boiler pid {boiler['pid']}, {as_size(boiler['memory'])}",
        row.format("NAME", "PID", "STATE", "RESTARTS", "UPTIME", "MEMORY", "TITLE"),
    ]
    for one in answer["processes"]:
        running = one["pid"] is not None
        numbers = (as_duration(one["uptime"]), as_size(one["memory"])) if running else ("-", "-")
        what = (one["name"], one["pid"] or "-", one["state"], one["restarts"])
        lines.append(row.format(*what, *numbers, one["title"]))
        lines += [
            row.format("", child["pid"], "", "", "", as_size(child["memory"]), child["title"])
            for child in one["children"]
        ]
    return lines


def _inspect(_arguments: argparse.Namespace) -> int:
    """Look with the running dyno's own environment: a shell in the dyno may have none of it (Heroku's has not)."""
    environ = _ask({"command": "environment"})["environment"]
    return subprocess.run([sys.executable, "app/manage.py", "inspect"], cwd=ROOT, env=environ, check=False).returncode


def _plan(arguments: argparse.Namespace) -> int:
    machine = sizing.here(settings.get("DYNO_RAM"))
    given = {name: value for name in ("memory", "cpus", "connections") if (value := getattr(arguments, name))}
    plan = sizing.plan(replace(machine, **given))
    chosen = {name: settings.get(name) for name in plan.values if os.environ.get(name)}
    if arguments.json:
        print(json.dumps(plan.values | chosen, indent=2))
        return 0
    print(f"for {as_size(plan.machine.memory)} and {plan.machine.cpus:g} CPUs:")
    for name, value in plan.values.items():
        what = f"set by you, planned were {value}" if name in chosen else plan.reasons[name]
        print(f"  {name + '=' + str(chosen.get(name, value)):<28} {what}")
    verdict = "" if plan.fits else ": more than there is, jobs or requests may end in the out-of-memory killer"
    print(f"in use under full load: about {as_size(plan.used)}{verdict}")
    return 0


def _restart(arguments: argparse.Namespace) -> int:
    old = _ask({"command": "restart", "name": arguments.name})["pid"]
    while True:
        now = {one["name"]: one for one in _ask({"command": "status"})["processes"]}[arguments.name]
        if now["pid"] not in (None, old):
            print(f"{arguments.name} restarted: pid {old} before, {now['pid']} now")
            return 0
        time.sleep(0.1)


def _stop(_arguments: argparse.Namespace) -> int:
    grace = _ask({"command": "stop"})["grace"]
    print(f"stopping, within {grace:g} s")
    lock = os.open(settings.runtime_dir() / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # the dyno holds it until nothing of it is left
    print("stopped")
    return 0


def _release(arguments: argparse.Namespace) -> int:
    """Run Procfile's release command; on a platform that calls it after the start, leave it to the dyno."""
    if not arguments.command:
        raise CommandError("name the command to run: app/boil release python app/manage.py migrate")
    if settings.get("RELEASE_AT_START"):
        print("RELEASE_AT_START=1: the dyno runs this at its start")
        return 0
    return _call(arguments.command, dict(os.environ))


def _run(arguments: argparse.Namespace) -> int:
    """Run a one-off command: in the running dyno's environment, or with the embedded PostgreSQL just for it."""
    if not arguments.command:
        raise CommandError("name the command to run: app/boil run python app/manage.py shell")
    try:
        running = status.ask(settings.runtime_dir() / "status", {"command": "environment"}, timeout=10)
    except OSError:
        running = {"environment": {}}
    environ = {**running["environment"], **os.environ}  # a shell in the dyno may have none of it (Heroku's has not)
    if environ.get("DATABASE_URL"):
        return _call(arguments.command, environ)
    with _embedded().serving():
        return _call(arguments.command, dict(os.environ))


def _call(command: list[str], environ: Mapping[str, str]) -> int:
    try:
        return subprocess.run(command, env=environ, check=False).returncode
    except OSError as error:
        raise CommandError(f"{command[0]}: {error.strerror}") from None
