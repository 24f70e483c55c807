"""The processes: the right ones, the right number, each in its place."""

from __future__ import annotations

from typing import Any

import pytest

from tests.verify.report import count, fail, listed
from tests.verify.target import Seen

pytestmark = pytest.mark.inside
LOG = "see the dyno's log"


def planned(seen: Seen, kind: str) -> list[dict[str, Any]]:
    """The lines of LocalProcfile of this kind."""
    return [one for one in seen.inside["plan"] if one["kind"] == kind]


def mains(seen: Seen) -> dict[str, int]:
    """The pid of each inner process's main process, if it runs."""
    return {one["name"]: one["pid"] for one in seen.inside["status"]["processes"] if one["pid"]}


def children(seen: Seen, name: str) -> list[dict[str, Any]]:
    """The children of an inner process's main process."""
    main = mains(seen).get(name)
    return [process for process in seen.inside["processes"] if main and process["parent"] == main]


def check_children(seen: Seen, kind: str, what: str, setting: str) -> None:
    """Fail if a line of this kind has fewer children than planned, or more that stay."""
    for one in planned(seen, kind):
        found = children(seen, one["name"])
        stay = [process for process in found if process["lasting"]]
        if len(found) < one["fewest"]:
            fail(
                f"{one['name']} has {count(len(found), what)}, planned are {one['fewest']} ({setting}): "
                f"{LOG} for why one does not start, then `app/boil restart {one['name']}`"
            )
        if len(stay) > one["most"]:
            fail(
                f"{one['name']} has {count(len(stay), what)}, planned are {one['most']} ({setting}): "
                f"{listed(stay)}: if you want as many, set {setting}, else `app/boil restart {one['name']}`"
            )


def test_every_inner_process_runs(seen: Seen) -> None:
    """Every line of LocalProcfile runs, once and under the boiler."""
    table = {process["pid"]: process for process in seen.inside["processes"]}
    supervisor = seen.inside["status"]["boiler"]["pid"]
    states = {one["name"]: one["state"] for one in seen.inside["status"]["processes"]}
    for one in seen.inside["plan"]:
        name = one["name"]
        if name not in states:
            fail(f"{name} is in LocalProcfile, but this dyno was started without it: restart the dyno")
        main = mains(seen).get(name)
        if states[name] != "running" or main not in table:
            fail(f"{name} does not run, it is {states[name]}: {LOG}; `app/boil restart {name}` starts it anew")
        if table[main]["parent"] != supervisor:
            fail(f"{name} (pid {main}) is not a child of the boiler: restart the dyno")
    extra = states.keys() - {one["name"] for one in seen.inside["plan"]} - {"postgres"}
    if extra:
        fail(f"{', '.join(sorted(extra))} runs, but is no longer in LocalProcfile: restart the dyno")


def test_gunicorn_has_its_workers(seen: Seen) -> None:
    """gunicorn has a master and as many workers as planned."""
    check_children(seen, "gunicorn", "worker", "WEB_CONCURRENCY")


def test_gunicorn_workers_are_what_was_chosen(seen: Seen) -> None:
    """gunicorn's workers are gevent ones in fact: each serves several requests at once in one thread."""
    wanted = seen.inside["settings"]["worker_class"]
    found = [process for one in planned(seen, "gunicorn") for process in children(seen, one["name"])]
    expected = {process["pid"] for process in found if process["lasting"]}
    if not expected or not seen.inside["web"]["page"]["status"]:
        return  # the checks of the workers and of the page say it
    reports = {report["pid"]: report for report in seen.inside["web"]["workers"]}
    silent = expected - reports.keys()
    if silent and len(expected - silent) < sum(one["fewest"] for one in planned(seen, "gunicorn")):
        fail(f"gunicorn worker {listed(silent)} answered no request in some seconds: `app/boil restart web`")
    for pid, report in reports.items():
        together = "gevent" if report["main_thread"] else "gthread"
        kind = together if report["at_once"] > 1 else "sync"
        if kind != wanted:
            fail(
                f"gunicorn worker {pid} works like a {kind} one (requests at once: {report['at_once']}), planned is "
                f"{wanted} (WEB_WORKER_CLASS): look for --worker-class in LocalProcfile and GUNICORN_CMD_ARGS"
            )


def test_celery_has_its_children(seen: Seen) -> None:
    """Celery has a main process and as many forked children as planned."""
    check_children(seen, "celery worker", "forked child", "WORKER_CONCURRENCY")


def test_nothing_else_runs(seen: Seen) -> None:
    """Nothing runs under the boiler that was not planned."""
    supervisor = seen.inside["status"]["boiler"]["pid"]
    images = {one["pid"] for one in seen.inside["status"]["images"]}  # from which the others were forked
    known = {*mains(seen).values(), supervisor, *images}
    top = {supervisor, seen.inside["status"]["boiler"]["init_pid"]}
    extra = [
        process
        for process in seen.inside["processes"]
        if process["parent"] in top and process["pid"] not in known and process["lasting"]
    ]
    if extra:
        fail(
            f"{listed(extra)}: left behind by a job or a request that is over: "
            "have it wait for the programs that it starts; a restart of the dyno ends these"
        )
    for one in planned(seen, "celery beat"):
        if stay := [process for process in children(seen, one["name"]) if process["lasting"]]:
            fail(f"{one['name']} should have no children: {listed(stay)}: `app/boil restart {one['name']}`")


def test_no_orphan(seen: Seen) -> None:
    """No orphan of an earlier dyno goes on outside the boiler."""
    if strays := seen.inside["strays"]:
        fail(f"{listed(strays)}: under no boiler, but at work in the same folder: end it with `kill PID`")


def test_no_zombie(seen: Seen) -> None:
    """No process is a zombie."""
    zombies = set(seen.inside["zombies"])
    parents = {process["parent"] for process in seen.inside["processes"] if process["pid"] in zombies}
    careless = [process for process in seen.inside["processes"] if process["pid"] in parents]
    if zombies:
        who = listed(careless) or "the container's first process"
        fail(f"{listed(zombies)} ended, but {who} takes no note of it: have that wait for its children")


def test_no_process_is_stopped(seen: Seen) -> None:
    """No process is stopped by a signal."""
    wrong = [process for process in seen.inside["processes"] if process["state"] in "Tt" and process["lasting"]]
    if wrong:
        fail(f"{listed(wrong)}: stopped by a signal or a debugger: `kill -CONT PID` lets it go on")


def test_no_restarts(seen: Seen) -> None:
    """No inner process had to be started again."""
    restarts = {one["name"]: one["restarts"] for one in seen.inside["status"]["processes"] if one["restarts"]}
    if restarts:
        what = ", ".join(f"{name}: {count(number, 'restart')}" for name, number in restarts.items())
        fail(f"{what} since the dyno's start: {LOG} for the reason; a restart of the dyno counts anew")
