"""The boiler on programs of all kinds: supervision, log, signals, commands."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from boiler.settings import ROOT
from tests.dyno import Dyno, alive
from tests.wait import wait_for

Scratch = Callable[..., Dyno]
THREE = "web: sleep 1001\nworker: sleep 1002\nbeat: sleep 1003\n"
# A process that no session, group or parent leads back to its inner process.
ESCAPES = "web: sleep 1001\nworker: sh -c 'setsid sleep 1004 & setsid sleep 1005'\n"


def running(dyno: Dyno, count: int = 3) -> dict[str, dict[str, Any]]:
    def started() -> dict[str, dict[str, Any]] | None:
        try:
            found = {one["name"]: one for one in dyno.status()["processes"]}
        except OSError:
            return None
        return found if sum(one["state"] == "running" for one in found.values()) >= count else None

    return wait_for(started, f"{count} processes run\n{dyno.log()}")


def boil(dyno: Dyno, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*dyno.boil, *words], env=dyno.environ, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("name", ["web", "worker", "beat"])
def test_a_killed_process_comes_back_and_the_others_stay(scratch: Scratch, name: str) -> None:
    dyno = scratch(THREE).start()
    before = running(dyno)
    os.kill(before[name]["pid"], signal.SIGKILL)
    after = wait_for(lambda: (now := running(dyno))[name]["restarts"] == 1 and now, f"{name} is back", 2)
    assert after[name]["pid"] != before[name]["pid"]
    others = set(before) - {name}
    assert {other: after[other]["pid"] for other in others} == {other: before[other]["pid"] for other in others}
    assert f"{name} ended by SIGKILL: starting it again" in dyno.log()


def escaping(dyno: Dyno) -> set[int]:
    """All pids of a dyno that runs ESCAPES, once the processes that escape are there."""
    running(dyno, 2)

    def titles() -> set[str]:
        return {child["title"] for child in dyno.inner("worker")["children"]}

    wait_for(lambda: titles() >= {"sleep 1004", "sleep 1005"}, "the escaping processes run")
    return dyno.pids()


@pytest.mark.parametrize("victim", ["pid", "init_pid"])
def test_nothing_is_left_when_the_boiler_is_killed(scratch: Scratch, victim: str) -> None:
    dyno = scratch(ESCAPES).start()
    pids = escaping(dyno)
    os.kill(dyno.status()["boiler"][victim], signal.SIGKILL)
    wait_for(lambda: not alive(pids), "nothing of the dyno is left", 2)
    assert dyno.process.wait(5) != 0


def test_nothing_is_left_when_the_boilers_process_group_is_killed(scratch: Scratch) -> None:
    """As uWSGI does it on Piku when the grace is over."""
    dyno = scratch(ESCAPES).start()
    pids = escaping(dyno)
    os.killpg(os.getpgid(dyno.status()["boiler"]["init_pid"]), signal.SIGKILL)
    wait_for(lambda: not alive(pids), "nothing of the dyno is left", 2)


def test_a_stop_signal_that_comes_while_the_boiler_ends_does_not_change_its_exit_code(scratch: Scratch) -> None:
    for _ in range(3):
        dyno = scratch(THREE).start()
        running(dyno)
        while dyno.process.poll() is None:
            dyno.process.send_signal(signal.SIGTERM)
        assert dyno.process.returncode == 0


def test_nothing_is_left_where_the_kernel_shows_no_processes(scratch: Scratch, tmp_path: Path) -> None:
    """As on macOS, and for an ordinary user on hosts that hide /proc."""
    dyno = scratch(THREE)
    source = dyno.root / "app" / "boiler" / "processes.py"
    source.write_text(source.read_text().replace('Path("/proc")', 'Path("/nowhere")'))
    dyno.start()
    before = running(dyno)
    boiler = dyno.status()["boiler"]
    pids = {boiler["pid"], boiler["init_pid"], *(one["pid"] for one in before.values())}
    os.kill(boiler["pid"], signal.SIGKILL)
    wait_for(lambda: not alive(pids), "nothing of the dyno is left", 3)


def test_an_ordered_stop_leaves_nothing_and_exits_with_0(scratch: Scratch) -> None:
    dyno = scratch(ESCAPES).start()
    escaping(dyno)
    assert dyno.stop(10) == 0


def test_a_stop_signal_to_every_process_three_times_is_an_ordered_stop(scratch: Scratch) -> None:
    dyno = scratch(THREE).start()
    running(dyno)
    pids = dyno.pids()
    for _ in range(3):
        for pid in alive(pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
    assert dyno.process.wait(10) == 0


def test_a_process_that_ignores_the_stop_is_killed_before_the_grace_is_over(scratch: Scratch) -> None:
    dyno = scratch("web: sh -c 'trap \"\" TERM; while :; do sleep 0.1; done'\n").start()
    running(dyno, 1)
    assert dyno.stop(5) == 0  # the boiler's grace


def test_a_shell_line_may_finish_its_work_when_it_is_stopped(scratch: Scratch) -> None:
    program = 'trap "sleep 0.5; echo work finished; exit" TERM; echo ready; while :; do sleep 0.1; done'
    dyno = scratch(f"web: sh -c '{program}' && true\n").start()
    wait_for(lambda: "ready" in dyno.log(), "the program runs")
    assert dyno.stop(10) == 0
    assert "work finished" in dyno.log()


def test_a_process_that_ends_with_0_is_started_again_and_never_ends_the_dyno_with_0(scratch: Scratch) -> None:
    dyno = scratch("web: true\nworker: sleep 1002\n").start()
    wait_for(lambda: dyno.process.poll() is not None, "the boiler gives up after 15 s of pauses", 40)
    assert dyno.process.returncode == 1
    assert "web ended with exit code 0, 6 times in a row: giving up" in dyno.log()


def test_orphans_leave_no_zombies(scratch: Scratch) -> None:
    dyno = scratch("web: sh -c 'while :; do (sleep 0.05 &); sleep 0.02; done'\n").start()
    running(dyno, 1)
    supervisor = dyno.status()["boiler"]["pid"]
    wait_for(lambda: dyno.status()["boiler"]["uptime"] > 1.5, "some orphans have come and gone")

    def zombies() -> int:
        rows = subprocess.run(
            ["ps", "-o", "stat=", "--ppid", str(supervisor)], capture_output=True, text=True, check=False
        )
        return sum(row.startswith("Z") for row in rows.stdout.splitlines())

    wait_for(lambda: zombies() == 0, "no zombies", 1)


def test_long_broken_and_unfinished_lines_survive_side_by_side(scratch: Scratch, tmp_path: Path) -> None:
    noisy = tmp_path / "noisy.py"
    noisy.write_text(
        "import os, time\n"
        "os.write(1, b'x' * 1_000_000 + b' end\\n' + b'bad \\xff\\xfe bytes\\n')\n"
        "for number in range(5000): os.write(1, b'line %d\\n' % number)\n"
        "os.write(1, b'no newline')\n"
        "time.sleep(1000)\n"
    )
    dyno = scratch(f"web: {sys.executable} {noisy}\nworker: {sys.executable} {noisy}\n").start()
    wait_for(lambda: dyno.log().count("| line 4999") == 2, "both have written")
    assert dyno.stop(10) == 0
    rows = dyno.log_file.read_bytes().split(b"\n")
    for name in (b"web", b"worker"):
        own = [row.split(b"| ", 1)[1] for row in rows if re.match(rb"\S+ " + name + rb" +\| ", row)]
        numbered = [b"line %d" % number for number in range(5000)]
        assert own == [b"x" * 1_000_000 + b" end", b"bad \xff\xfe bytes", *numbered, b"no newline"]


def test_a_log_reader_that_hangs_does_not_stop_the_supervision(scratch: Scratch, tmp_path: Path) -> None:
    dyno = scratch("web: yes\nworker: sleep 1002\n")
    reader, writer = os.pipe()
    dyno.process = subprocess.Popen(
        [*dyno.boil, "start"], env=dyno.environ, cwd=dyno.root, stdout=writer, stderr=writer
    )
    os.close(writer)
    before = running(dyno, 2)
    os.kill(before["worker"]["pid"], signal.SIGKILL)
    wait_for(lambda: running(dyno, 2)["worker"]["restarts"] == 1, "the worker is back")
    assert dyno.stop(10) == 0
    os.close(reader)


def test_the_status_socket_is_private(scratch: Scratch) -> None:
    dyno = scratch(THREE).start()
    running(dyno)
    assert stat.S_IMODE(dyno.runtime.stat().st_mode) == 0o700
    assert (dyno.runtime / "status").is_socket()


def test_a_runtime_folder_of_somebody_else_is_refused(scratch: Scratch, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody")
    else:
        folder = Path("/")
    assert "set BOILER_DIR to a folder of your own" in boil(scratch(THREE, BOILER_DIR=str(folder)), "start").stderr


def test_status_names_every_process(scratch: Scratch) -> None:
    dyno = scratch(THREE).start()
    running(dyno)
    shown = boil(dyno, "status")
    assert shown.returncode == 0
    for name in ("web", "worker", "beat"):
        assert re.search(rf"^{name} +\d+ running +0 ", shown.stdout, re.MULTILINE)
    assert '"restarts": 0' in boil(dyno, "status", "--json").stdout


def test_restart_gives_one_process_a_new_pid(scratch: Scratch) -> None:
    dyno = scratch(THREE).start()
    before = running(dyno)
    answer = boil(dyno, "restart", "worker")
    assert answer.returncode == 0, answer.stderr
    after = running(dyno)
    assert after["worker"]["pid"] != before["worker"]["pid"]
    assert after["web"]["pid"] == before["web"]["pid"]
    assert after["worker"]["restarts"] == 0
    assert "can't be restarted now" in boil(dyno, "restart", "nobody").stderr


def test_stop_waits_until_the_dyno_is_gone(scratch: Scratch) -> None:
    dyno = scratch(THREE).start()
    running(dyno)
    pids = dyno.pids()
    assert boil(dyno, "stop").returncode == 0
    assert not alive(pids - {dyno.pid})
    assert dyno.process.wait(5) == 0


def test_commands_say_when_no_dyno_runs(scratch: Scratch) -> None:
    dyno = scratch(THREE)
    for words in (["status"], ["restart", "web"], ["stop"]):
        answer = boil(dyno, *words)
        assert answer.returncode == 1
        assert answer.stderr.startswith("boil: no dyno of this checkout is running")
        assert answer.stderr.count("\n") == 1


def test_a_boiler_that_does_not_answer_is_not_taken_for_none(scratch: Scratch) -> None:
    dyno = scratch(THREE).start()
    running(dyno)
    supervisor = dyno.status()["boiler"]["pid"]
    os.kill(supervisor, signal.SIGSTOP)
    answer = boil(dyno, "status")
    os.kill(supervisor, signal.SIGCONT)
    assert answer.returncode == 1
    assert answer.stderr == "boil: the boiler does not answer (timed out): the machine may be busy, try again\n"


def test_a_second_dyno_in_the_same_folder_is_refused(scratch: Scratch) -> None:
    dyno = scratch(THREE).start()
    running(dyno)
    second = boil(dyno, "start")
    assert second.returncode == 1
    assert "a dyno of this checkout is running" in second.stderr
    assert len(alive(dyno.pids())) == 5


def test_only_the_named_processes_are_started(scratch: Scratch) -> None:
    dyno = scratch(THREE).start("worker")
    assert set(running(dyno, 1)) == {"worker"}
    assert "no 'nobody': it has web, worker, beat" in boil(scratch(THREE), "start", "nobody").stderr


def test_dotenv_is_read_and_the_environment_wins(scratch: Scratch) -> None:
    dyno = scratch("web: sh -c 'echo $A-$B; sleep 1000'\n", A="outside")
    (dyno.root / ".env").write_text("A=file\nB=file\n")
    dyno.start()
    wait_for(lambda: "| outside-file" in dyno.log(), "the line")


def test_the_same_file_runs_under_plain_honcho(scratch: Scratch) -> None:
    # honcho ends all when one of them has ended.
    web = "web: sh -c 'echo port $PORT; touch said; sleep 1000'\n"
    dyno = scratch(web + "worker: sh -c 'until [ -e said ]; do sleep 0.05; done; echo worked'\n")
    honcho = subprocess.run(
        [str(Path(sys.executable).parent / "honcho"), "start", "-f", "LocalProcfile"],
        cwd=dyno.root,
        env=dyno.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert f"port {dyno.port}" in honcho.stdout
    assert "worked" in honcho.stdout


def test_check_starts_nothing_and_reports_every_mistake(scratch: Scratch) -> None:
    bad = scratch("oops\nx: no-such-program\n", PORT="abc", WEB_CONCURRENCY="none")
    answer = boil(bad, "check")
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 5  # bad line, no program, no web, and two settings
    assert not (bad.runtime / "status").exists()
    assert boil(scratch(THREE), "check").returncode == 0


def test_the_repositorys_own_files_pass_the_check() -> None:
    answer = subprocess.run(
        [sys.executable, str(ROOT / "app" / "boil"), "check"], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr


def test_dyno_runs_names_the_lines_that_start(scratch: Scratch) -> None:
    dyno = scratch(THREE, DYNO_RUNS="web, beat").start()
    assert running(dyno, 2).keys() - {"ready"} == {"web", "beat"}
    assert dyno.stop() == 0


def test_dyno_runs_with_an_unknown_name_starts_nothing(scratch: Scratch) -> None:
    dyno = scratch("web: sleep 100", DYNO_RUNS="wbe").start()
    assert dyno.process.wait(30) == 1
    assert "no 'wbe': it has web" in dyno.log()
