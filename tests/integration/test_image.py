"""Images: inner processes forked from an interpreter that has loaded the app once."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.docker import checkout
from tests.dyno import Dyno, alive
from tests.jobs import Diary, Queue
from tests.wait import wait_for

Scratch = Callable[..., Dyno]

# What an image of the scratch checkout loads, and a program that writes down what it finds itself to be.
LOADS = """
import random
LOADED = []
def load(name):
    LOADED.append(name)
def renew():
    LOADED.append("renewed")
"""
SHOWS = """
import json, os, random, signal, sys, time
image = sys.modules.get("config.image")
facts = {
    "loaded": image.LOADED if image else None,
    "heavy": sys.modules["heavy"].PID if "heavy" in sys.modules else None,
    "argv": sys.argv,
    "process": os.environ.get("BOILER_PROCESS"),
    "environ": sorted(os.environ),
    "cwd": os.getcwd(),
    "leads": os.getsid(0) == os.getpgid(0) == os.getpid(),
    "parent": os.getppid(),
    "random": random.random(),
    "files": {name: os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if int(name) > 2
              and os.path.exists(f"/proc/self/fd/{name}")},
    "terminates": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
    "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
}
with open(f"facts-{os.environ['BOILER_PROCESS']}", "w") as file:
    json.dump(facts, file)
print("shown")
time.sleep(1000)
"""
ENDS = """
import atexit, sys, threading
atexit.register(print, "last words")
threading.Thread(target=lambda: (threading.main_thread().join(), print("the thread is done"))).start()
print("no end of a line", end="")
"""
TWO = "web: python app/shows.py --port 1\nworker: python app/shows.py 'two words'\n"


@pytest.fixture
def showing(scratch: Scratch) -> Callable[..., Dyno]:
    """Dynos whose processes write down what they are; `loads` is the code of config/image.py."""

    def make(lines: str = TWO, loads: str = LOADS, ends: str = "", **environ: str) -> Dyno:
        dyno = scratch(lines, **environ)
        (dyno.root / "app" / "config").mkdir(exist_ok=True)
        (dyno.root / "app" / "config" / "image.py").write_text(loads)
        (dyno.root / "app" / "shows.py").write_text(SHOWS)
        (dyno.root / "app" / "ends.py").write_text(ends)
        (dyno.root / "app" / "heavy.py").write_text(
            "import os, sys; PID = os.getpid(); assert 'config.image' not in sys.modules"
        )
        return dyno.start()

    return make


def facts(dyno: Dyno, name: str) -> dict[str, Any]:
    def read() -> dict[str, Any] | None:
        try:
            return json.loads((dyno.root / f"facts-{name}").read_text())
        except (OSError, ValueError):
            return None

    found = wait_for(read, f"{name} has shown itself\n{dyno.log()}")
    (dyno.root / f"facts-{name}").unlink()
    return found


def images(dyno: Dyno) -> list[int]:
    return [one["pid"] for one in dyno.status()["images"]]


def test_python_programs_are_forked_and_find_themselves_as_if_they_were_started(showing) -> None:
    dyno = showing()
    web, worker = facts(dyno, "web"), facts(dyno, "worker")
    for name, found in (("web", web), ("worker", worker)):
        assert found["loaded"] == ["jobs", "renewed"]
        assert found["process"] == name
        assert found["cwd"] == str(dyno.root)
        assert found["leads"]
        assert found["parent"] == dyno.status()["boiler"]["pid"]
        assert found["terminates"]
        assert found["blocked"] == 0
        assert found["files"] == {}
    assert web["argv"] == ["app/shows.py", "--port", "1"]
    assert worker["argv"] == ["app/shows.py", "two words"]
    assert web["random"] != worker["random"]
    assert "worker     | shown" in dyno.log()
    assert dyno.stop(10) == 0


def test_a_shared_library_is_loaded_once_and_before_the_images(showing) -> None:
    dyno = showing(SHARED_IMPORTS="heavy")
    web, worker = facts(dyno, "web"), facts(dyno, "worker")
    assert web["heavy"] == worker["heavy"] == images(dyno)[0]
    assert web["loaded"] == worker["loaded"] == ["jobs", "renewed"]
    assert web["parent"] == dyno.status()["boiler"]["pid"]
    assert dyno.stop(10) == 0


def test_without_the_image_of_shared_libraries_all_goes_on(showing) -> None:
    dyno = showing(SHARED_IMPORTS="heavy")
    before = facts(dyno, "worker")
    os.kill(images(dyno)[0], signal.SIGKILL)
    wait_for(lambda: len(images(dyno)) == 1, "it is gone")
    os.kill(dyno.inner("worker")["pid"], signal.SIGKILL)
    assert facts(dyno, "worker")["heavy"] == before["heavy"]


def test_one_setting_starts_every_process_by_itself(showing) -> None:
    forked = set(facts(showing(), "web")["environ"])
    dyno = showing(BOILER_IMAGE="0")
    found = facts(dyno, "web")
    assert found["loaded"] is None
    assert set(found["environ"]) - {"BOILER_IMAGE"} == forked
    assert images(dyno) == []


def test_a_program_that_is_not_python_runs_beside_those_that_are_forked(showing) -> None:
    dyno = showing("web: python app/shows.py\nother: sleep 1001\nshell: sleep 1002 && true\n")
    assert facts(dyno, "web")["loaded"]
    wait_for(lambda: dyno.inner("shell")["state"] == "running", "all run")
    assert dyno.inner("other")["title"] == "sleep 1001"


def test_a_killed_process_is_forked_again(showing) -> None:
    dyno = showing()
    before = facts(dyno, "web")
    began = time.monotonic()
    os.kill(dyno.inner("web")["pid"], signal.SIGKILL)
    after = facts(dyno, "web")
    print(f"back after {time.monotonic() - began:.3f} s")
    assert after["loaded"] == ["jobs", "renewed"]
    assert after["random"] != before["random"]


@pytest.mark.parametrize("end", ["sys.exit(3)", "sys.exit('a reason')", "raise ValueError('a fault')", "pass"])
def test_a_forked_program_ends_like_one_that_was_started(showing, end: str) -> None:
    def says(**environ: str) -> list[str]:
        dyno = showing("web: python app/ends.py\n", ends=f"{ENDS}\n{end}\n", **environ)
        wait_for(lambda: dyno.log().count("web ended") > 1, "it has ended twice, so that all of the first is there")
        dyno.kill()
        lines = [line.split(" | ", 1) for line in dyno.log().splitlines()]
        # Without the frames of a traceback, which the two have different ones of.
        said = [text for name, text in lines if name.split()[1] == "web" and not text.startswith("  ")]
        ended = [text.partition(":")[0] for _, text in lines if "web ended" in text]
        return [*dict.fromkeys(said), *dict.fromkeys(ended)]

    assert says() == says(BOILER_IMAGE="0")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_without_its_image_a_process_is_started_by_itself(showing, number: signal.Signals) -> None:
    dyno = showing()
    facts(dyno, "web")
    (image,) = images(dyno)
    os.kill(image, number)
    os.kill(dyno.inner("web")["pid"], signal.SIGKILL)
    assert facts(dyno, "web")["loaded"] is None
    wait_for(lambda: not alive({image}), "the image can't go on and fork what was asked of it")
    assert dyno.inner("worker")["restarts"] == 0
    assert dyno.stop(10) == 0


@pytest.mark.parametrize(
    ("loads", "reason"),
    [
        ("import nothing_that_there_is", "ModuleNotFoundError"),
        (
            LOADS + "\nimport threading, time\nthreading.Thread(target=time.sleep, args=[9], daemon=True).start()",
            "threads",
        ),
    ],
    ids=["an app that can't be loaded", "an app that starts threads"],
)
def test_an_app_that_can_not_be_forked_is_started_and_the_log_says_why(showing, loads: str, reason: str) -> None:
    dyno = showing(loads=loads)
    assert facts(dyno, "web")["loaded"] is None
    assert reason in dyno.log()
    assert "started by itself" in dyno.log()


# --- the app itself ---


def test_the_web_is_back_by_a_fork_and_requests_share_no_connection(dyno: Dyno, database_url: str) -> None:
    os.kill(dyno.inner("web")["pid"], signal.SIGKILL)
    wait_for(lambda: dyno.inner("web")["restarts"] == 1, "the web was started again")
    wait_for(dyno.is_healthy, "it serves again")
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: dyno.post("/jobs", {"kind": "io", "seconds": 0.01}), range(300)))
    ids = [job for status, answer in answers for job in answer["ids"] if status == 202]
    assert len(set(ids)) == 300
    wait_for(lambda: dyno.get(f"/jobs/{max(ids)}")[1]["state"] == "done", "the jobs are done", 60)
    assert "Traceback" not in dyno.log()


@pytest.fixture
def holding(queue: Queue, tmp_path: Path) -> Iterator[Dyno]:
    """A dyno of the app whose requests and jobs can hold a transaction open: tests/jobs_wsgi.py, jobs_tasks.py."""
    root = tmp_path / "app"
    checkout(root)
    lines = (root / "LocalProcfile").read_text()
    for before, after in (("config.wsgi", "tests.jobs_wsgi"), (" worker ", " worker --include tests.jobs_tasks ")):
        assert before in lines
        lines = lines.replace(before, after)
    (root / "LocalProcfile").write_text(lines)
    environ = {"DATABASE_URL": queue.url, "PYTHONPATH": str(root), "VIRTUAL_ENV": "1", "WORKER_CONCURRENCY": "3"}
    dyno = Dyno(tmp_path / "dyno", environ, root)
    yield dyno.start().wait_until_healthy()
    dyno.kill()


def hold_all(dyno: Dyno, diary: Diary) -> dict[str, set[int]]:
    """Hold transactions open in many requests and jobs at once, and see that none shares its connection.

    Returns the pids of the processes that had one: `web` and `worker`.
    """
    before = len(diary.entries("held"))
    assert dyno.get(f"/hold/200?file={diary.file}&jobs=15")[0] == 200
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: dyno.get("/hold/200"), range(80)))
    assert {status for status, _ in answers} == {200}
    jobs = wait_for(lambda: len(diary.entries("held")) == before + 15 and diary.entries("held")[before:], "15 jobs", 60)
    held = {"web": [answer for _, answer in answers], "worker": jobs}
    every = sorted([*held["web"], *held["worker"]], key=lambda one: datetime.fromisoformat(one["began"]))
    assert all(one["alone"] for one in every)
    ended: dict[int, datetime] = {}
    owners: dict[int, set[int]] = {}
    for one in every:
        began = datetime.fromisoformat(one["began"])
        assert ended.get(one["backend"], began) <= began, f"two at once on one connection: {one}"
        ended[one["backend"]] = datetime.fromisoformat(one["ended"])
        owners.setdefault(one["backend"], set()).add(one["pid"])
    assert [pids for pids in owners.values() if len(pids) > 1] == []  # none is shared by two processes
    return {name: {one["pid"] for one in found} for name, found in held.items()}


def test_no_two_at_once_share_a_database_connection_also_after_another_fork(holding: Dyno, diary: Diary) -> None:
    assert len(images(holding)) == 2
    before = hold_all(holding, diary)
    assert all(len(pids) > 1 for pids in before.values())
    for name in ("web", "worker"):
        os.kill(holding.inner(name)["pid"], signal.SIGKILL)
        wait_for(lambda name=name: holding.inner(name)["restarts"] == 1, f"{name} was forked again")
    wait_for(holding.is_healthy, "all is well again", 60)
    after = hold_all(holding, diary)
    assert all(len(pids) > 1 for pids in after.values())
    assert not before["web"] & after["web"]
    assert not before["worker"] & after["worker"]
    assert "started by itself" not in holding.log()
    assert "Traceback" not in holding.log()


def test_gevent_is_in_the_web_and_nowhere_else(dyno: Dyno) -> None:
    def loaded(pid: int) -> bool:
        return "gevent" in Path(f"/proc/{pid}/maps").read_text()

    for name, expected in (("web", True), ("worker", False), ("beat", False)):
        inner = dyno.inner(name)
        assert {loaded(pid) for pid in [inner["pid"], *(child["pid"] for child in inner["children"])]} == {expected}


def test_the_images_socket_is_nobody_elses(dyno: Dyno) -> None:
    """Whoever held its other end could start programs, and would keep the image alive."""

    def sockets(pid: int) -> set[str]:
        names = set()
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                names.add(str(file.readlink()))
        return {name for name in names if name.startswith("socket:")}

    for image in images(dyno):
        (own,) = sockets(image)
        assert [pid for pid in dyno.pids() if own in sockets(pid)] == [image]
