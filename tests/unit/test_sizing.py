"""The plan: what fits into which dyno, and how limits are found."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from boiler import cli, settings, sizing
from boiler.sizing import Machine
from boiler.units import MB

GB = 1024 * MB
SIZES = [Machine(int(gb * GB), cpus) for gb in (0.25, 0.5, 1, 2.5, 14) for cpus in (0.5, 1, 2, 8)]


def test_the_smallest_paid_dyno_gets_two_web_workers_and_four_pool_children() -> None:
    plan = sizing.plan(Machine(512 * MB, 1))
    assert plan.fits
    assert (plan.values["WEB_CONCURRENCY"], plan.values["WORKER_CONCURRENCY"]) == (2, 4)


@pytest.mark.parametrize("machine", SIZES, ids=str)
def test_what_a_plan_uses_stays_below_the_limit_or_is_the_least_there_can_be(machine: Machine) -> None:
    plan = sizing.plan(machine)
    processes = plan.values["WEB_CONCURRENCY"], plan.values["WORKER_CONCURRENCY"]
    assert plan.fits or processes == (1, 1)
    for name, value in plan.values.items():
        assert settings.get(name, {name: str(value)}) == value


@pytest.mark.parametrize("connections", [20, 40, 120, 500])
@pytest.mark.parametrize("machine", SIZES, ids=str)
def test_a_plan_leaves_database_connections_for_others(machine: Machine, connections: int) -> None:
    values = sizing.plan(Machine(machine.memory, machine.cpus, connections)).values
    pools = values["WEB_CONCURRENCY"] * values["DATABASE_POOL"]
    assert pools + values["WORKER_CONCURRENCY"] + sizing.OTHERS <= connections - sizing.SPARE


def test_a_heavy_app_gets_fewer_processes_that_may_grow_to_its_size() -> None:
    heavy = sizing.plan(Machine(GB, 4, app=300 * MB)).values
    light = sizing.plan(Machine(GB, 4)).values
    assert heavy["WORKER_CONCURRENCY"] < light["WORKER_CONCURRENCY"]
    assert heavy["WORKER_CHILD_MEMORY"] > 300


def test_what_the_user_sets_wins(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "7")
    assert settings.get("WEB_CONCURRENCY") == 7
    assert cli.main(["plan", "--memory", "512m", "--cpus", "1"]) == 0
    shown = capsys.readouterr().out
    assert "WEB_CONCURRENCY=7" in shown
    assert "set by you, planned were 2" in shown
    assert "WORKER_CONCURRENCY=4" in shown


def test_a_dyno_that_is_too_small_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--memory", "200m", "--cpus", "1"]) == 0
    assert "more than there is" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["12x", "", "-1m"])
def test_a_size_that_is_none_is_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["plan", "--memory", wrong])
    assert "--memory" in capsys.readouterr().err


def test_the_platforms_word_counts_where_it_is_less(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sizing.here(dyno_ram=256).memory == 256 * MB


def test_the_embedded_database_is_known_before_the_first_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BOILER_DIR", str(tmp_path))
    planned = {}
    for where in ("", f"postgresql://dyno@{quote(str(tmp_path), safe='')}/dyno", "postgresql://dyno@elsewhere/dyno"):
        monkeypatch.setenv("DATABASE_URL", where)  # the second is what the boiler gives its inner processes
        sizing.here.cache_clear()
        planned[where] = sizing.here().connections
        assert cli.main(["plan", "--memory", "512m", "--cpus", "1"]) == 0
        assert f"of {planned[where]} connections" in capsys.readouterr().out
    sizing.here.cache_clear()
    assert [*planned.values()] == [37, 37, 20]


def test_what_a_start_measured_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BOILER_DIR", str(tmp_path))
    assert sizing.recall() == {}
    sizing.remember(300 * MB, 100 * MB, 40)
    assert sizing.recall() == {"app": 300 * MB, "shared": 100 * MB, "connections": 40}
    (tmp_path / "measured").write_text('{"app": ')
    assert sizing.recall() == {}


def test_on_512_mb_500_visitors_may_watch_even_if_all_of_them_come_to_one_web_worker() -> None:
    values = sizing.plan(Machine(512 * MB, 1)).values
    assert values["WEB_CONCURRENCY"] == 2
    assert values["WEB_CONNECTIONS"] >= 500 + 100  # that are left to requests
