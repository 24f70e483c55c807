"""`make bench-compare`: this repository's layout beside others, in turns, each in a dyno with the same limits.

A round runs every layout once; ratios are taken within a round, so that what slows down the machine for a while
slows down both of their sides. Database and Redis are outside the dyno; with `--delay 2` a round trip to them takes
2 ms more. A dyno has cores of its own; the load, the database and Redis have the others.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from importlib.metadata import version
from itertools import count, product
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

import psycopg
import redis
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from boiler.postgres import Embedded
from boiler.settings import ROOT
from tests import servers
from tests.bench.chart import draw
from tests.bench.layouts import LAYOUTS, Layout, checkout, environ_of, start
from tests.bench.measure import Lengths, Run
from tests.dyno import free_port
from tests.platform import Limits
from tests.soak import manage

BASELINE = "seed"
# Figure: what it is called in the table, and how many digits it gets behind the point.
FIGURES = {
    "idle_pss_mb": ("idle memory, MB", 0),
    "peak_pss_mb": ("busy memory, MB", 0),
    "first_200_s": ("start to first 200, s", 2),
    "first_job_s": ("start to first job done, s", 2),
    "hello_per_s": ("hello requests/s", 0),
    "hello_p50_ms": ("hello median, ms", 1),
    "hello_p99_ms": ("hello p99, ms", 1),
    "accepted_per_s": ("jobs accepted/s by AJAX", 0),
    "done_per_s": ("jobs/s from AJAX to done", 0),
    "jobs_lost": ("jobs lost", 0),
    "cpu_ms_per_job": ("CPU ms per job", 2),
    "db_connections": ("database connections", 0),
    "job_start_ms": ("idle: AJAX to job's start, ms", 1),
    "busy_hello_p99_ms": ("hello p99 with a full queue, ms", 1),
    "stop_s": ("idle: SIGTERM to exit, s", 2),
    "supervisor_cpu_percent": ("idle: supervisor's CPU, %", 3),
    "idle_cpu_percent": ("idle: CPU of all, %", 2),
}
# A machine is called noisy when the same work took so many percent longer in one turn than in another, or when
# so many percent of its time went to somebody else.
NOISE = 15

Results = dict[str, list[dict[str, Any]]]  # for each layout its rounds


def calibrate() -> float:
    """How long this machine takes for the same little work, in seconds: the median of five."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        sum(number * number for number in range(1_000_000))
        times.append(time.perf_counter() - began)
    return median(times)


def stolen() -> tuple[float, float]:
    """The machine's CPU time so far, and how much of it a hypervisor gave to others; in ticks (proc_stat(5))."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks), ticks[7]


class Kitchen:
    """A PostgreSQL and a Redis outside the dynos, and a relay in front of each if there is a `delay` (ms)."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._numbers = count(1)

    @contextmanager
    def open(self) -> Iterator[Kitchen]:
        """Run the servers for the length of a `with` block."""
        with ExitStack() as stack:
            self._sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="boiler-bench-")))
            server = Embedded(self._sockets / "data", self._sockets)
            server.prepare(wait=0)
            with (self._sockets / "data" / "postgresql.conf").open("a") as conf:
                # Under gevent without a pool, which is usual, every client has a connection of its own.
                conf.write("max_connections = 200\n")
            stack.enter_context(server.serving())
            self._admin("ALTER SYSTEM SET log_min_messages = 'panic'")
            self._admin("SELECT pg_reload_conf()")
            self._admin("CREATE DATABASE template OWNER dyno")
            manage(ROOT, "migrate", "--noinput", DATABASE_URL=self.url("template"))
            self._redis = stack.enter_context(servers.Redis())
            self._relays = {}
            if self._delay:
                for name, target in (
                    ("database", str(self._sockets / ".s.PGSQL.5432")),
                    ("redis", str(self._redis.port)),
                ):
                    self._relays[name] = stack.enter_context(relayed(target, self._delay))
            yield self

    def new_database(self) -> str:
        """The name of a fresh, migrated database; Redis is empty too."""
        name = f"run{next(self._numbers)}"
        self._admin(f"CREATE DATABASE {name} TEMPLATE template OWNER dyno")
        redis.Redis.from_url(self._redis.url).flushall()
        return name

    def drop(self, name: str) -> None:
        self._admin(f"DROP DATABASE {name} WITH (FORCE)")

    def url(self, name: str, user: str = "dyno") -> str:
        return f"postgresql://{user}@{quote(str(self._sockets), safe='')}/{name}"

    def urls_for_dynos(self, name: str) -> tuple[str, str]:
        """The addresses of the database and of Redis, behind the relays if there are any."""
        if not self._relays:
            return self.url(name), self._redis.url
        return f"postgresql://dyno@127.0.0.1:{self._relays['database']}/{name}", (
            f"redis://127.0.0.1:{self._relays['redis']}/0"
        )

    def round_trip(self) -> float:
        """Milliseconds that a dyno's smallest query takes: the median of 50."""
        name = self.new_database()
        with psycopg.connect(self.urls_for_dynos(name)[0], autocommit=True) as connection:
            times = []
            for _ in range(50):
                began = time.perf_counter()
                connection.execute("SELECT 1")
                times.append(time.perf_counter() - began)
        self.drop(name)
        return median(times) * 1000

    def _admin(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres", "postgres"), autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def relayed(target: str, delay: float) -> Iterator[int]:
    """A port on which connections to `target` take `delay` ms longer for a round trip."""
    port = free_port()
    command = [sys.executable, str(ROOT / "tests" / "relay.py"), str(port), target, str(delay)]
    with subprocess.Popen(command) as relay:
        time.sleep(0.5)  # nobody may connect yet: each connection is one at the other end as well
        yield port
        relay.terminate()


def run_once(layout: Layout, kitchen: Kitchen, folder: Path, arguments: argparse.Namespace, say: Any) -> dict[str, Any]:
    """Start one layout, measure it, and stop it; what went wrong is in its notes."""
    name = kitchen.new_database()
    environ = environ_of(layout, *kitchen.urls_for_dynos(name), free_port()) | dict(arguments.set)
    limits = Limits(arguments.memory * 1024**2, arguments.cpus)
    speed, (before_all, before_stolen) = calibrate(), stolen()
    began = time.monotonic()
    dynos = start(layout, folder, folder.parent / "checkout", environ, limits, cores=arguments.cores)
    run = Run(dynos, kitchen.url(name), works=layout.works, lengths=arguments.lengths, began=began)
    try:
        run.measure(say)
    except (AssertionError, OSError) as error:
        logs = "".join(f"\n{dyno.log()[-2000:]}" for dyno in dynos)
        run.notes.append(f"failed: {error}{logs}")
    finally:
        for dyno in dynos:
            dyno.kill()
    after_all, after_stolen = stolen()
    kitchen.drop(name)
    share = (after_stolen - before_stolen) / max(1, after_all - before_all) * 100
    return {"figures": run.figures, "notes": run.notes, "calibration_s": speed, "stolen_percent": round(share, 2)}


def ratios(results: Results, layout: str, figure: str, baseline: str) -> list[float]:
    """The layout's figure over the baseline's, round by round."""
    pairs = zip(results[layout], results[baseline], strict=False)
    found = [(mine["figures"].get(figure), theirs["figures"].get(figure)) for mine, theirs in pairs]
    return [mine / theirs for mine, theirs in found if mine is not None and theirs]


def typical(results: Results, layout: str, figure: str) -> float:
    """The median over the rounds; NaN if there is none."""
    values = [run["figures"][figure] for run in results[layout] if figure in run["figures"]]
    return median(values) if values else math.nan


def table(results: Results, baseline: str) -> str:
    """Medians in Markdown, and behind each the ratio to the baseline: its median, lowest and highest."""
    rows = [["", *results], ["---", *["---:"] * len(results)]]
    for figure, (title, digits) in FIGURES.items():
        cells = [cell(results, layout, figure, digits, baseline) for layout in results]
        rows.append([title, *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def cell(results: Results, layout: str, figure: str, digits: int, baseline: str) -> str:
    value = typical(results, layout, figure)
    if math.isnan(value):
        return "-"
    text = f"{value:,.{digits}f}"
    found = ratios(results, layout, figure, baseline) if baseline in results and layout != baseline else []
    if not found:
        return text
    spread = f", {min(found):.2f}-{max(found):.2f}" if len(found) > 1 else ""
    return f"{text} ({median(found):.2f}x{spread})"


def noise(results: Results) -> list[str]:
    """Why these figures are not to be trusted, one line each."""
    runs = [run for rounds in results.values() for run in rounds]
    speeds = [run["calibration_s"] for run in runs]
    found = []
    if (slower := (max(speeds) / min(speeds) - 1) * 100) > NOISE:
        found.append(f"the same work took up to {slower:.0f} % longer in one turn than in another")
    if (share := max(run["stolen_percent"] for run in runs)) > NOISE:
        found.append(f"up to {share:.0f} % of the machine's time went to other machines")
    return found


def conditions(arguments: argparse.Namespace, round_trip: float) -> str:
    """How the figures were made, in a sentence or two."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "gunicorn", "gevent", "django"))
    ballast = f", {arguments.ballast} MB more of imports" if arguments.ballast else ""
    chosen = "".join(f", {name}={value}" for name, value in arguments.set)
    return (
        f"{datetime.now().astimezone():%Y-%m-%d}, Python {platform.python_version()}, {packages}; dyno: "
        f"{arguments.memory} MB and {arguments.cpus:g} of {os.cpu_count()} CPUs{ballast}{chosen}; "
        f"{round_trip:.2f} ms for a query; {arguments.rounds} rounds."
    )


def setting(text: str) -> tuple[str, str]:
    """The name and the value of NAME=VALUE. Raises ValueError."""
    name, value = text.split("=", 1)
    return name, value


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.compare", description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(LAYOUTS), metavar="NAMES", help=f"of {', '.join(LAYOUTS)}")
    parser.add_argument("--baseline", default=BASELINE, help=f"what the ratios are to (default: {BASELINE})")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=512, help="a dyno's MB (default: 512)")
    parser.add_argument("--cpus", type=float, default=1, help="a dyno's CPUs (default: 1)")
    parser.add_argument("--delay", type=float, default=0, metavar="MS", help="add a round trip to database and Redis")
    parser.add_argument("--ballast", type=int, default=0, metavar="MB", help="let the app's imports weigh so much more")
    parser.add_argument(
        "--set", action="append", default=[], type=setting, metavar="NAME=VALUE", help="a setting, for every layout"
    )
    parser.add_argument("--short", action="store_true", help="stages of one second: to try it out, not to measure")
    parser.add_argument("--output", type=Path, default=ROOT / "bench", metavar="FOLDER", help="default: bench")
    arguments = parser.parse_args(argv)
    arguments.lengths = Lengths(1, 1, 1, 1) if arguments.short else Lengths()
    arguments.layouts = [name for name in arguments.only.split(",") if name]
    if unknown := set(arguments.layouts) - LAYOUTS.keys():
        parser.error(f"there is no layout {min(unknown)}: known are {', '.join(LAYOUTS)}")
    if not shutil.which("redis-server"):
        parser.error("needs redis-server: install Debian's package redis-server")
    return arguments


def compare(arguments: argparse.Namespace, console: Console) -> tuple[Results, str]:
    """Run all rounds; returns the figures and how they were made."""
    results: Results = {name: [] for name in arguments.layouts}
    arguments.cores = sorted(os.sched_getaffinity(0))
    if rest := arguments.cores[math.ceil(arguments.cpus) :]:
        os.sched_setaffinity(0, rest)  # the load, PostgreSQL and Redis: the first cores are the dyno's
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[stage]}"), TimeElapsedColumn())
    with ExitStack() as stack:
        kitchen = stack.enter_context(Kitchen(arguments.delay).open())
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="boiler-bench-")))
        progress = stack.enter_context(Progress(*columns, console=console))
        steps = progress.add_task("checkouts", total=arguments.rounds * len(results), stage="")
        for name in results:
            checkout(place / name / "checkout", LAYOUTS[name], arguments.ballast)
        for turn, name in product(range(arguments.rounds), results):
            progress.update(steps, description=f"round {turn + 1}: {name}")
            folder = place / name / f"round{turn}"
            try:
                run = run_once(
                    LAYOUTS[name], kitchen, folder, arguments, lambda stage: progress.update(steps, stage=stage)
                )
            except KeyboardInterrupt:
                progress.console.print("ended early: what follows is of the runs before", highlight=False)
                break
            results[name].append(run)
            progress.advance(steps)
            for note in run["notes"]:
                progress.console.print(f"{name}, round {turn + 1}: {note}", highlight=False)
        return results, conditions(arguments, kitchen.round_trip())


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    console = Console(stderr=True)
    results, made = compare(arguments, console)
    results = {name: runs for name, runs in results.items() if runs}
    if not results:
        return 130
    warnings = noise(results)
    text = f"{made}\n\n{table(results, arguments.baseline)}"
    text += "".join(f"\nThe machine was too noisy for these figures: {warning}.\n" for warning in warnings)
    print(text, end="")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "compare.md").write_text(text)
    data = {"made": made, "noise": warnings, "baseline": arguments.baseline, "layouts": results}
    (arguments.output / "compare.json").write_text(json.dumps(data, indent=2) + "\n")
    (arguments.output / "compare.svg").write_text(draw(results, made))
    console.print(f"written: compare.md, compare.json and compare.svg in {arguments.output}", highlight=False)
    failed = [note for runs in results.values() for run in runs for note in run["notes"] if note.startswith("failed")]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
