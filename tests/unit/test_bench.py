"""The benchmark's own arithmetic, and what it says of a noisy machine."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from tests.bench.chart import draw
from tests.bench.client import percentile
from tests.bench.compare import noise, parse, ratios, table
from tests.bench.course import judge
from tests.bench.layouts import BALLAST


def run(calibration: float = 0.1, stolen: float = 0.0, **figures: float) -> dict[str, Any]:
    return {"figures": figures, "notes": [], "calibration_s": calibration, "stolen_percent": stolen}


RESULTS = {
    "seed": [run(done_per_s=100, idle_pss_mb=240), run(done_per_s=50, idle_pss_mb=240)],
    "boiler": [run(done_per_s=400, idle_pss_mb=180), run(done_per_s=250, idle_pss_mb=180)],
    "gunicorn": [run(hello_per_s=1000), run(hello_per_s=1000)],
}


@pytest.mark.parametrize(("percent", "value"), [(50, 50), (95, 95), (99, 99), (100, 100), (0, 1)])
def test_percentiles_are_values_that_were_measured(percent, value):
    assert percentile(list(range(100, 0, -1)), percent) == value


def test_the_percentile_of_nothing_is_no_number():
    assert math.isnan(percentile([], 50))


def test_ratios_are_taken_round_by_round():
    assert ratios(RESULTS, "boiler", "done_per_s", "seed") == [4, 5]
    assert ratios(RESULTS, "gunicorn", "done_per_s", "seed") == []


def test_the_table_has_medians_with_ratios_and_their_spread():
    lines = {line.split(" | ")[0].strip("| "): line for line in table(RESULTS, "seed").splitlines()}
    assert "| 75 | 325 (4.50x, 4.00-5.00) | - |" in lines["jobs/s from AJAX to done"]
    assert "| 240 | 180 (0.75x, 0.75-0.75) | - |" in lines["idle memory, MB"]


def test_a_quiet_machine_is_not_complained_of():
    assert noise(RESULTS) == []


def test_a_noisy_machine_is_told():
    (slow,) = noise({"seed": [run(), run(calibration=0.13)]})
    assert "30 % longer" in slow
    (stolen,) = noise({"seed": [run(), run(stolen=40)]})
    assert "40 % of the machine's time" in stolen


def test_the_chart_is_good_svg_with_a_bar_for_each_layout():
    svg = ET.fromstring(draw(RESULTS, "made <here>; and there"))  # noqa: S314 (our own)
    texts = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("boiler") == 2
    assert "made <here>" in texts
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}rect"))) == 4


def test_an_unknown_layout_is_named(capsys):
    with pytest.raises(SystemExit):
        parse(["--only", "seed,toaster"])
    assert "there is no layout toaster" in capsys.readouterr().err


def job(created: str, started: str | None, finished: str | None, state: str = "done") -> dict[str, Any]:
    stamps = {"created": created, "started": started, "finished": finished}
    day = "2026-01-01T00:00:"
    return {"state": state, **{name: stamp and f"{day}{stamp}+00:00" for name, stamp in stamps.items()}}


def test_jobs_are_judged_by_the_databases_times():
    outcome = judge(
        [
            job("00.000000", "01.000000", "03.000000"),
            job("00.000000", "01.000000", "03.000000"),
            job("00.000000", "03.000000", "05.000000"),
            job("00.000000", None, None, "queued"),
        ]
    )
    assert (outcome.sent, outcome.done) == (4, 3)
    assert outcome.rate == pytest.approx(3 / 5)
    assert outcome.at_once == pytest.approx(6 / 4)
    assert (outcome.waited_p50, outcome.waited_p99) == (1, 3)


def test_no_job_done_is_no_rate():
    outcome = judge([job("00.000000", None, None, "queued")])
    assert (outcome.sent, outcome.done, outcome.rate) == (1, 0, 0)


def test_the_ballast_of_a_heavy_app_is_a_module_of_the_size_that_was_asked_for() -> None:
    module: dict[str, Any] = {}
    exec(BALLAST.format(count=3), module)  # noqa: S102 (what a checkout's app imports)
    assert [len(words) for words in module["DATA"]] == [10, 10, 10]
