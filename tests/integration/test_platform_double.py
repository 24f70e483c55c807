"""The dyno double itself, on little programs: who gets which signal, what is reported, what is left."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import platform
from tests.platform import DOCKER, HEROKU, PIKU, Cgroup, Container, Limits, Platform, alive
from tests.wait import wait_for

# Its three processes write down each SIGTERM: the first leaves at the one that it is told, the others never.
# `inside` is in the first one's process group, `outside` is an orphan in a session of its own.
FAMILY = """
import os, signal, sys

name, leaves_at, terms = "first", int(sys.argv[1]), 0

def on_term(*_):
    global terms
    terms += 1
    os.write(1, f"{name} term\\n".encode())
    if name == "first" and terms == leaves_at:
        os._exit(7)

signal.signal(signal.SIGTERM, on_term)
if not os.fork():
    name = "inside"
elif not os.fork():
    os.setsid()
    if os.fork():
        os._exit(0)
    name = "outside"
os.write(1, f"{name} ready\\n".encode())
while True:
    signal.pause()
"""
NEVER = 0


class Program:
    """A container, and what its processes have written."""

    def __init__(self, container: Container, log: Path) -> None:
        self.container = container
        self.log = log

    def lines(self) -> Counter[str]:
        return Counter(self.log.read_text().splitlines())


@pytest.fixture(params=["cgroup", "descent"])
def tracker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of finding a dyno's processes."""
    if request.param == "descent":
        monkeypatch.setattr(platform.Cgroup, "make", lambda _limits: None)
    elif not (cgroup := Cgroup.make(Limits())):
        pytest.skip("this machine gives no cgroup to this user")
    else:
        cgroup.close()
    return request.param


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Run Python code: `run(HEROKU, CODE, "an argument", limits=Limits())`."""
    programs: list[Program] = []

    def start(how: Platform, code: str, *arguments: str, limits: Limits | None = None) -> Program:
        log = tmp_path / f"log{len(programs)}"
        with log.open("wb") as output:
            container = Container.start(
                [sys.executable, "-c", code, *arguments], how, port=5055, log=output, limits=limits
            )
        programs.append(Program(container, log))
        return programs[-1]

    yield start
    for program in programs:
        program.container.close()


@pytest.fixture
def family(run: Callable[..., Program], tracker: str) -> Callable[[Platform, int], Program]:
    """Start the family; returns when its three processes are ready."""

    def start(how: Platform, leaves_at: int) -> Program:
        program = run(how, FAMILY, str(leaves_at))
        wait_for(lambda: program.lines().total() == 3, "all are ready")
        wait_for(lambda: len(program.container.pids()) == 3, "the one between has ended")
        return program

    return start


def test_broadcast_reaches_every_process_three_times(family: Callable[..., Program]) -> None:
    program = family(replace(HEROKU, grace=4), NEVER)
    everyone = program.container.pids()
    ending = program.container.stop()
    assert {name: program.lines()[f"{name} term"] for name in ("first", "inside", "outside")} == {
        "first": 3,
        "inside": 3,
        "outside": 3,
    }
    assert ending.killed
    assert ending.returncode == -9
    assert 4 <= ending.seconds < 6
    assert [line.count(" -c ") for line in ending.left_over] == [1, 1]  # with their command lines
    assert not alive(everyone)


def test_broadcast_ends_with_the_first_process(family: Callable[..., Program]) -> None:
    program = family(HEROKU, 2)
    everyone = program.container.pids()
    ending = program.container.stop()
    assert (ending.returncode, ending.killed) == (7, False)
    assert program.lines()["outside term"] >= 1
    assert 1 <= ending.seconds < 3
    assert len(ending.left_over) == 2
    assert not alive(everyone)


def test_pid1_asks_the_first_process_alone(family: Callable[..., Program]) -> None:
    program = family(DOCKER, 1)
    everyone = program.container.pids()
    ending = program.container.stop()
    assert (ending.returncode, ending.killed) == (7, False)
    assert program.lines()["first term"] == 1
    assert program.lines()["inside term"] == program.lines()["outside term"] == 0
    assert len(ending.left_over) == 2
    assert not alive(everyone)


def test_pid1_kills_every_process_after_the_grace(family: Callable[..., Program]) -> None:
    program = family(replace(DOCKER, grace=2), NEVER)
    everyone = program.container.pids()
    ending = program.container.stop()
    assert (ending.returncode, ending.killed) == (-9, True)
    assert program.lines()["first term"] == 1
    assert 2 <= ending.seconds < 4
    assert not alive(everyone)


def test_group_asks_the_group_every_second_and_leaves_alone_what_is_left(family: Callable[..., Program]) -> None:
    program = family(PIKU, 2)
    ending = program.container.stop()
    assert (ending.returncode, ending.killed) == (7, False)
    assert program.lines()["first term"] == 2
    wait_for(lambda: program.lines()["inside term"] == 2, "the rest of the group has had the signal twice as well")
    assert program.lines()["outside term"] == 0
    assert 1 <= ending.seconds < 3
    assert len(program.container.pids()) == len(ending.left_over) == 2


def test_group_kills_the_group_and_what_is_outside_survives(family: Callable[..., Program]) -> None:
    program = family(replace(PIKU, grace=2), NEVER)
    ending = program.container.stop()
    assert (ending.returncode, ending.killed) == (-9, True)
    assert program.lines()["inside term"] == 2
    assert len(ending.left_over) == 1
    (survivor,) = program.container.pids()
    assert ending.left_over[0].startswith(f"{survivor} ")
    program.container.close()
    assert not alive({survivor})


def test_a_process_that_dies_of_the_signal_is_reported_by_its_number(run: Callable[..., Program], tracker: str) -> None:
    program = run(DOCKER, "import time; print(1, flush=True); time.sleep(100)")
    wait_for(program.lines, "the program runs")
    ending = program.container.stop()
    assert (ending.returncode, ending.killed, ending.left_over) == (-15, False, ())
    assert ending.seconds < DOCKER.grace


def test_a_dyno_that_has_ended_before_is_not_signalled(run: Callable[..., Program], tracker: str) -> None:
    program = run(HEROKU, "raise SystemExit(3)")
    assert program.container.wait(20)
    assert program.container.stop().returncode == 3


def test_two_dynos_are_told_apart(family: Callable[..., Program]) -> None:
    one, other = family(HEROKU, 1), family(HEROKU, 1)
    assert not one.container.pids() & other.container.pids()
    one.container.stop()
    assert other.lines().total() == 3
    assert len(other.container.pids()) == 3


@pytest.mark.parametrize(("how", "dyno"), [(HEROKU, "web.1"), (DOCKER, "none"), (PIKU, "none")])
def test_the_environment_is_the_platforms(run: Callable[..., Program], how: Platform, dyno: str) -> None:
    program = run(how, "import os; print(os.environ['PORT'], os.environ.get('DYNO', 'none'))")
    assert program.container.wait(20)
    assert list(program.lines()) == [f"5055 {dyno}"]


def test_the_kernel_keeps_the_memory_limit(run: Callable[..., Program]) -> None:
    program = run(DOCKER, "x = bytearray(200_000_000); print('had it')", limits=Limits(memory=50_000_000))
    if not program.container.limited:
        pytest.skip("this machine gives no memory cgroup to this user")
    assert program.container.wait(20)
    assert program.container.process.returncode == -9
    assert program.lines() == Counter()


def test_the_kernel_keeps_the_cpu_limit(run: Callable[..., Program]) -> None:
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    began = time.monotonic()
    program = run(DOCKER, busy, limits=Limits(cpus=0.25))
    if not program.container.limited:
        pytest.skip("this machine gives no cpu cgroup to this user")
    assert program.container.wait(60)
    assert time.monotonic() - began > 1


def test_a_dyno_without_its_limits_says_so(run: Callable[..., Program], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform.Cgroup, "make", lambda _limits: None)
    with pytest.warns(UserWarning, match="no cgroup to be had"):
        program = run(DOCKER, "pass", limits=Limits(memory=50_000_000))
    assert not program.container.limited


def test_nothing_of_a_cgroup_remains(tmp_path: Path) -> None:
    cgroup = Cgroup.make(Limits(memory=50_000_000, cpus=1))
    if not cgroup:
        pytest.skip("this machine gives no cgroup to this user")
    folders = [Path(name).parent for name in cgroup.entrance()[5:]]
    assert all(folder.is_dir() for folder in folders)
    cgroup.close()
    assert not any(folder.exists() for folder in folders)


def test_limits_of_version_2_are_set_below_the_first_group_that_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "a.slice" / "b.scope"
    own.mkdir(parents=True)
    for folder, enabled in ((own, ""), (own.parent, "memory pids"), (tmp_path, "cpu io memory pids")):
        (folder / "cgroup.subtree_control").write_text(enabled)
    monkeypatch.setattr(platform, "_own_cgroups", lambda: {"": own})
    cgroup = Cgroup.make(Limits(memory=512_000_000, cpus=0.5))
    assert cgroup
    assert cgroup.limited
    (group,) = tmp_path.glob("dyno-double-*")
    assert (group / "memory.max").read_text() == "512000000"
    assert (group / "cpu.max").read_text() == "50000 100000"


def test_a_user_who_may_not_enter_a_cgroup_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "_own_cgroups", lambda: {"": tmp_path})
    monkeypatch.setattr(platform.Cgroup, "entrance", lambda _self: ["false"])
    assert Cgroup.make(Limits()) is None
    assert not list(tmp_path.iterdir())
