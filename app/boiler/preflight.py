"""What `boil check` finds out, and `boil start` before it starts anything."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from . import procfile, settings
from .procfile import Entry, Mistake

# The pools whose drain is tested: what can't finish within the grace goes back to the queue.
POOLS = ("prefork", "processes", "threads", "gevent")
POOL_OPTION = re.compile(r"(?:--pool[= ]|-P *)(\S+)")


def lossy_workers(file: str, entries: list[Entry]) -> list[Mistake]:
    """The Celery workers that would lose jobs, or run scheduled ones twice, when a dyno is cycled."""
    mistakes = []
    for entry in entries:
        words = entry.command.split()
        if not (any(Path(word).name == "celery" for word in words) and "worker" in words):
            continue
        pool = POOL_OPTION.search(entry.command)
        if pool and pool[1] not in POOLS:
            reason = f"the pool {pool[1]!r} can't put back a job that is running: use prefork, threads or gevent"
            mistakes.append(Mistake(file, entry.line, f"{entry.name}: {reason}"))
        if {"-B", "--beat"} & set(words):
            reason = "-B schedules in every worker, so every scheduled job is sent several times: use a line `beat`"
            mistakes.append(Mistake(file, entry.line, f"{entry.name}: {reason}"))
    return mistakes


def local_procfile(root: Path, names: list[str], environ: Mapping[str, str]) -> tuple[list[Entry], list[Mistake]]:
    """The entries of LocalProcfile to be run (all, or those in `names`), and every mistake in the file."""
    path = root / "LocalProcfile"
    entries, mistakes = procfile.read(path)
    known = [entry.name for entry in entries]
    if entries and "web" not in known:
        mistakes.append(Mistake(path.name, 0, "no `web`: the platform sends requests to the one called web"))
    mistakes += procfile.missing_commands(path.name, entries, environ, root)
    mistakes += lossy_workers(path.name, entries)
    for name in names:
        if name not in known and entries:
            mistakes.append(Mistake(path.name, 0, f"no {name!r}: it has {', '.join(known)}"))
    return [entry for entry in entries if not names or entry.name in names], mistakes


def platform_procfile(root: Path) -> list[Mistake]:
    """The mistakes in Procfile, which the platform reads."""
    path = root / "Procfile"
    entries, mistakes = procfile.read(path)
    for entry in entries:
        # Dokku's herokuish passes the line through `eval echo`, which drops quotes and runs operators.
        if not entry.is_plain:
            mistakes.append(
                Mistake(path.name, entry.line, f"{entry.name}: plain words only, quotes and operators get lost")
            )
    return mistakes


def wrong_settings(environ: Mapping[str, str]) -> list[str]:
    """A line for every setting that can't be used."""
    wrong = []
    for name in settings.SETTINGS:
        try:
            settings.get(name, environ)
        except settings.SettingError as error:
            wrong.append(str(error))
    if wrong:
        return wrong
    tops = {name.partition(".")[0] for name in settings.get("SHARED_IMPORTS", environ)}
    for top in sorted(tops):
        if not find_spec(top):
            wrong.append(f"SHARED_IMPORTS: there is no module {top}: correct it, or add it to the dependencies")
    for needed in (settings.secret_key, settings.database_url):
        try:
            needed(environ)
        except settings.SettingError as error:
            wrong.append(str(error))
    return wrong


def port_in_use(environ: Mapping[str, str]) -> str | None:
    """A line that says why gunicorn could not listen, or None."""
    address, port = settings.get("BIND_ADDRESS", environ), settings.get("PORT", environ)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"PORT={port}: taken by another process: stop that one or set another PORT"
            return f"BIND_ADDRESS={address} PORT={port}: can't listen there: {error.strerror}; set other values"
    return None
