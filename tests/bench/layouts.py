"""The layouts that are compared: what runs in which dyno, and how each is started.

Every layout runs this repository's app and demo. The plain ones run it as it is usually done: with gunicorn's and
Celery's defaults, under honcho, on Redis, each order in a transaction of its own and with a `delay()` for each job.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from boiler.settings import ROOT, SETTINGS
from tests.dyno import Dyno
from tests.platform import Limits
from tests.soak import KEY, PLAIN_CELERY, PLAIN_SETTINGS, manage

WEB = "web: gunicorn --chdir app -k gevent --bind 127.0.0.1:$PORT config.wsgi\n"
WORKER = "worker: celery --workdir app --app config worker -B --loglevel INFO\n"
SPLIT = (
    "web: gunicorn --chdir app --workers 2 {options}--bind 127.0.0.1:$PORT config.wsgi\n"
    "worker: celery --workdir app --app config worker --loglevel INFO\n"
    "beat: celery --workdir app --app config beat --loglevel INFO\n"
)
# What this repository does with orders and their jobs, and what is usual.
PLAIN = {
    "demo/orders.py": (
        "_place_together = Together(_place_all)",
        "def _place_together(order):\n    return _place_all([order])[0]",
    ),
    "jobs/queue.py": (
        "        transaction.on_commit(partial(_send, task, calls))",
        "        for args in calls:\n            transaction.on_commit(partial(task.delay, *args))",
    ),
}
BOILER = ("boil", "start")
HONCHO = ("honcho", "start", "-f", "LocalProcfile")


@dataclass(frozen=True)
class Layout:
    """`dynos` has one command for each dyno, or `web` for that line of its procfile alone.

    `procfile` replaces LocalProcfile; `plain` takes the usual settings instead of this repository's; `planned` lets
    the boiler decide how many processes there are, where the others have two web workers and two pool children.
    """

    name: str
    about: str
    dynos: tuple[tuple[str, ...], ...]
    broker: str = "redis"
    procfile: str = ""
    plain: bool = True
    planned: bool = False
    works: bool = True  # whether there is a worker


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("boiler", "this repository, on PostgreSQL alone", (BOILER,), "pgmq", plain=False),
        Layout("boiler-plan", "the same as `boil plan` sizes it", (BOILER,), "pgmq", plain=False, planned=True),
        Layout("boiler-redis", "this repository, with Redis for the queue", (BOILER,), plain=False),
        Layout("seed", "gunicorn -k gevent, celery worker -B, under honcho, Redis", (HONCHO,), procfile=WEB + WORKER),
        Layout(
            "set",
            "two gevent gunicorn workers, celery worker, beat, under honcho, Redis",
            (HONCHO,),
            procfile=SPLIT.format(options="-k gevent "),
        ),
        Layout(
            "sync",
            "two sync gunicorn workers, celery worker, beat, under honcho, Redis",
            (HONCHO,),
            procfile=SPLIT.format(options=""),
        ),
        Layout(
            "two-dynos",
            "the seed's web and worker in a dyno each, Redis",
            ((*HONCHO, "web"), (*HONCHO, "worker")),
            procfile=WEB + WORKER,
        ),
        Layout("honcho", "this repository's LocalProcfile under honcho", (HONCHO,), "pgmq", plain=False),
        Layout("gunicorn", "this repository's web line alone", (("web",),), "pgmq", plain=False, works=False),
    )
}

# An app whose imports weigh: objects that are there from the import on, as those of a big library are.
BALLAST = """
DATA = [[f"{{number}} {{part}}" for part in range(10)] for number in range({count})]
"""
BALLAST_BYTES = 740  # of one inner list, measured with CPython 3.13


def checkout(place: Path, layout: Layout, ballast: int) -> None:
    """A copy of the checkout that runs the layout; its app's imports weigh so many megabytes more."""
    ignored = shutil.ignore_patterns("__pycache__", "staticfiles")
    shutil.copytree(ROOT / "app", place / "app", ignore=ignored)
    shutil.copy(ROOT / "Procfile", place)
    (place / "LocalProcfile").write_text(layout.procfile or (ROOT / "LocalProcfile").read_text())
    config = place / "app" / "config"
    if layout.plain:
        for name, (ours, usual) in PLAIN.items():
            file = place / "app" / name
            before, after = file.read_text().split(ours)
            file.write_text(before + usual + after)
        (config / "celery.py").write_text(PLAIN_CELERY)
        with (config / "settings.py").open("a") as settings:
            # Celery's own concurrency is the number of the host's cores.
            settings.write(PLAIN_SETTINGS.replace('CELERY_WORKER_CONCURRENCY = get("WORKER_CONCURRENCY")\n', ""))
    if ballast:
        library = BALLAST.format(count=ballast * 1_000_000 // BALLAST_BYTES)
        (place / "app" / "ballast").mkdir()
        (place / "app" / "ballast" / "__init__.py").touch()
        (place / "app" / "ballast" / "library.py").write_text(library)
        (place / "app" / "ballast" / "models.py").write_text("from . import library\n")
        with (config / "settings.py").open("a") as settings:
            settings.write('\nINSTALLED_APPS.append("ballast")\n')
    manage(place, "collectstatic", "--noinput")


class LayoutDyno(Dyno):
    """One dyno of a layout."""

    def __init__(self, folder: Path, environ: dict[str, str], root: Path, command: tuple[str, ...]) -> None:
        super().__init__(folder, environ, root)
        # gunicorn takes an empty WEB_CONCURRENCY for a number.
        self.environ = {name: value for name, value in self.environ.items() if value}
        self.command = command

    @property
    def argv(self) -> list[str]:
        """The command of the dyno's first process."""
        program, *words = self.command
        if program == "boil":
            return [*super().boil, *words]
        if program == "honcho":
            return [str(Path(sys.executable).parent / "honcho"), *words]
        (line,) = [line for line in (self.root / "LocalProcfile").read_text().splitlines() if line.startswith("web: ")]
        return ["/bin/sh", "-c", f"exec {line.removeprefix('web: ')}"]

    def is_up(self) -> bool:
        """Whether the web answers."""
        with suppress(OSError, HTTPException):
            return self.get("/hello", timeout=10)[0] == 200
        return False


def environ_of(layout: Layout, database: str, redis: str, port: int) -> dict[str, str]:
    """The settings of a layout's dynos: the defaults, whatever the user's environment says."""
    environ = {name: setting.default for name, setting in SETTINGS.items() if name != "BOILER_DIR"}
    # The same set everywhere; gunicorn's own default is one worker, and reads this variable too.
    sizes = {"WEB_CONCURRENCY": "1" if layout.plain else "2", "WORKER_CONCURRENCY": "2"}
    return environ | {
        "DATABASE_URL": database,
        "REDIS_URL": redis if layout.broker == "redis" else "",
        "PORT": str(port),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "BIND_ADDRESS": "127.0.0.1",
        "DJANGO_SECRET_KEY": KEY,
        "DJANGO_HTTPS": "0",
        **({} if layout.planned else sizes),
        "JOBS_WAITING": "1000000",
        "JOBS_KEPT": "1000000",
        "PYTHONUNBUFFERED": "1",
    }


def start(
    layout: Layout, folder: Path, place: Path, environ: dict[str, str], limits: Limits, *, cores: list[int]
) -> list[LayoutDyno]:
    """Start the layout's dynos, each with the limits; their logs and sockets go to folders below `folder`.

    Each is kept to as many of the machine's `cores` as it may use, the first dyno to the first ones. Spread over two
    cores, processes use up a quota of one CPU in half of its 100 ms and stand still for the other half, so that an
    answer of 5 ms takes 50 now and then: that would be the quota's latency, not the layout's.
    """
    dynos = []
    wanted = math.ceil(limits.cpus) or len(cores)
    for number, command in enumerate(layout.dynos):
        dyno = LayoutDyno(folder / f"dyno{number}", environ, place, command)
        dyno.limits = limits
        own = [cores[(number * wanted + n) % len(cores)] for n in range(wanted)]
        dyno.launch(["taskset", "--cpu-list", ",".join(map(str, own)), *dyno.argv])
        dynos.append(dyno)
    return dynos
