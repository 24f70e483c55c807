"""`make bench`: the course of the page's mini benchmark from the command line, against any target.

The target says what the course is and when the next one may begin. What becomes of jobs is the database's word: they
are asked for by their ids when a stage is over.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from jobs.visit import Site
from tests.bench.client import Client, Sample, load, percentile
from tests.verify.backends import UnreachableError
from tests.verify.target import visited

MOST_IDS = 300  # jobs in one question
TITLES = {"hello": "Hello requests", "io": "Jobs that wait", "cpu": "Jobs that compute", "storm": "Storm of AJAX calls"}


class TargetError(RuntimeError):
    """The target can't be measured; the message is one line."""


@dataclass(frozen=True)
class Outcome:
    """What became of jobs. `rate`: jobs a second from the first call to the last end; waits in seconds."""

    sent: int
    done: int
    rate: float
    at_once: float
    waited_p50: float | None
    waited_p99: float | None


def judge(jobs: list[dict[str, Any]]) -> Outcome:
    """Judge jobs as the API shows them."""
    at = datetime.fromisoformat
    done = [(at(job["created"]), at(job["started"]), at(job["finished"])) for job in jobs if job["state"] == "done"]
    if not done:
        return Outcome(len(jobs), 0, 0.0, 0.0, None, None)
    last = max(finished for _, _, finished in done)
    spent = (last - min(at(job["created"]) for job in jobs)).total_seconds()
    cooked = (last - min(started for _, started, _ in done)).total_seconds()
    worked = sum((finished - started).total_seconds() for _, started, finished in done)
    waits = [(started - created).total_seconds() for created, started, _ in done]
    return Outcome(
        len(jobs),
        len(done),
        len(done) / spent if spent else 0.0,
        worked / cooked if cooked else 0.0,
        percentile(waits, 50),
        percentile(waits, 99),
    )


class Course:
    """One run of the course against `site`; `advance` is called with each stage's name and its share that is over."""

    def __init__(self, site: Site, advance: Callable[[str, float], None]) -> None:
        self._url = site.url.rstrip("/")
        self._headers = site.headers
        self._base = urlsplit(self._url).path
        self._client = Client(self._url, self._headers)
        self._advance = advance
        self.figures: dict[str, dict[str, Any]] = {}

    async def run(self) -> None:
        """Run all stages. Raises TargetError, OSError."""
        course = await self._ask("POST", "/bench", {}, 201)
        self._seconds, self._connections = course["seconds"], course["connections"]
        for stage in course["stages"]:
            ticking = asyncio.create_task(self._tick(stage["stage"]))
            run = {"hello": self._hello, "storm": self._storm}.get(stage["stage"], self._jobs)
            self.figures[stage["stage"]] = await run(stage, asyncio.sleep(self._seconds))
            await ticking
        self._client.close()

    async def _tick(self, name: str) -> None:
        began = time.monotonic()
        while (passed := time.monotonic() - began) < self._seconds:
            self._advance(name, passed / self._seconds)
            await asyncio.sleep(0.1)
        self._advance(name, 1.0)

    async def _hello(self, stage: dict[str, Any], over: Any) -> dict[str, Any]:
        over.close()
        path = self._base + stage["path"]
        sample = await load(
            self._url, "GET", path, headers=self._headers, connections=self._connections, seconds=self._seconds
        )
        return {"requests_per_s": sample.rate, **self._latencies(sample)}

    async def _jobs(self, stage: dict[str, Any], over: Any) -> dict[str, Any]:
        answer = await self._ask("POST", "/jobs", stage["order"], 202)
        await over
        outcome = judge(await self._look(answer["ids"]))
        share = {"cpus": outcome.rate * stage["order"]["seconds"]} if stage["stage"] == "cpu" else {}
        return {**vars(outcome), **share}

    async def _storm(self, stage: dict[str, Any], over: Any) -> dict[str, Any]:
        ids: list[int] = []
        sample, _ = await asyncio.gather(
            load(
                self._url,
                "POST",
                f"{self._base}/jobs",
                json.dumps(stage["order"]).encode(),
                headers=self._headers,
                connections=self._connections,
                seconds=stage["sends"],
                answered=lambda answer: ids.extend(json.loads(answer[1]).get("ids", [])),
            ),
            over,
        )
        outcome = judge(await self._look(ids))
        return {"accepted_per_s": len(ids) / sample.seconds, **vars(outcome), **self._latencies(sample)}

    def _latencies(self, sample: Sample) -> dict[str, Any]:
        if not sample.latencies:
            raise TargetError(f"{self._url}: not one answer within {sample.seconds:.0f} s")
        return {
            "p50_ms": sample.milliseconds(50),
            "p95_ms": sample.milliseconds(95),
            "p99_ms": sample.milliseconds(99),
            "statuses": dict(sample.statuses),
            "broken": sample.broken,
        }

    async def _look(self, ids: list[int]) -> list[dict[str, Any]]:
        jobs = []
        for start in range(0, len(ids), MOST_IDS):
            path = f"/jobs?ids={','.join(map(str, ids[start : start + MOST_IDS]))}"
            jobs += (await self._ask("GET", path, None, 200))["jobs"]
        return jobs

    async def _ask(self, method: str, path: str, body: Any, expected: int) -> dict[str, Any]:
        """One call of the API. Raises TargetError with the target's own sentence if it refuses."""
        data = b"" if body is None else json.dumps(body).encode()
        status, text = await self._client.ask(method, self._base + path, data)
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {}
        if status != expected:
            said = answer.get("error") or f"{method} {path} is answered {status}: is it a Double Boiler with its demo?"
            raise TargetError(f"{self._url}: {said}")
        return answer


def rows(figures: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """The table's rows: what, and how much."""
    hello, io, cpu, storm = (figures[name] for name in TITLES)
    still = storm["sent"] - storm["done"]
    return [
        ("Hello", f"{hello['requests_per_s']:,.0f} requests/s"),
        ("Hello, median, 95th and 99th percentile", three(hello)),
        (TITLES["io"], f"{io['done']} of {io['sent']} done, {io['rate']:.1f}/s, {io['at_once']:.1f} at once"),
        (TITLES["cpu"], f"{cpu['done']} of {cpu['sent']} done, {cpu['rate']:.1f}/s, {cpu['cpus']:.2f} CPUs"),
        ("Storm: calls taken", f"{storm['accepted_per_s']:,.0f}/s"),
        ("Storm: calls, median, 95th and 99th percentile", three(storm)),
        (
            "Storm: jobs done",
            f"{storm['rate']:,.0f}/s, {f'{still} still to do' if still else 'all'} of {storm['sent']}",
        ),
        (
            "Storm: from call to start, median and 99th",
            f"{storm['waited_p50'] * 1000:,.0f} ms, {storm['waited_p99'] * 1000:,.0f} ms" if storm["done"] else "-",
        ),
    ]


def three(figures: dict[str, Any]) -> str:
    return ", ".join(f"{figures[name]:.1f} ms" for name in ("p50_ms", "p95_ms", "p99_ms"))


def main(argv: list[str]) -> int:
    """Run the course and print, and write, what came out."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.course", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("bench"), metavar="FOLDER", help="default: bench")
    arguments = parser.parse_args(argv)
    console = Console(stderr=True)
    try:
        site = visited(os.environ, lambda line: console.print(f"bench: {line}", highlight=False))
    except UnreachableError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    columns = (TextColumn("{task.description:20}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def advance(name: str, share: float) -> None:
            if name not in bars:
                bars[name] = progress.add_task(TITLES.get(name, name), total=1.0)
            progress.update(bars[name], completed=share)

        course = Course(site, advance)
        try:
            asyncio.run(course.run())
        except TargetError as error:
            fault = str(error)
        except OSError as error:
            fault = f"{site.url}: {error or 'no answer'}: start the dyno (`make run`), or give another URL="
        else:
            fault = ""
    if fault:
        print(f"bench: {fault}", file=sys.stderr)
        return 1
    table = Table(title=f"Double Boiler at {site.url}", show_header=False, title_justify="left")
    for row in rows(course.figures):
        table.add_row(*row)
    Console().print(table)
    arguments.output.mkdir(parents=True, exist_ok=True)
    made = {"url": site.url, "at": datetime.now().astimezone().isoformat(timespec="seconds")}
    (arguments.output / "course.json").write_text(json.dumps({**made, **course.figures}, indent=2) + "\n")
    console.print(f"written: {arguments.output / 'course.json'}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
