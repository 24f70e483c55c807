"""Nothing is lost when a dyno is cycled: one test for each row of the soak's table (tests/soak.py).

SOAK=1 runs the long form, which takes hours.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.soak import LONG, SHORT, Row, Soak, rows, table

IS_LONG = bool(os.environ.get("SOAK"))

# A test waits for its row, which other rows may keep waiting, and the first ones for their servers as well.
pytestmark = pytest.mark.timeout(7200 if IS_LONG else 300)


@pytest.fixture(scope="module")
def soak(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soak]:
    """The rows of all tests that were chosen, under way in the background; prints the table at the end."""
    chosen = [item.callspec.params["row"] for item in request.session.items if item.path == request.path]
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    say = terminal.write_line if IS_LONG else lambda _: None
    soak = Soak(chosen, LONG if IS_LONG else SHORT, tmp_path_factory.mktemp("soak"), say, parallel=3)
    yield soak
    soak.close()
    terminal.write_line("\n\n" + table(soak.results()))


@pytest.mark.parametrize("row", rows(long=IS_LONG), ids=str)
def test_no_job_and_no_request_is_lost_when_dynos_are_cycled(soak: Soak, row: Row) -> None:
    assert soak.result(row).complaints() == []
