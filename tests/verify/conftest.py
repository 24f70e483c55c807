"""Looks at the target once, before the first check, and shows one line for each."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from tests.verify.backends import UnreachableError
from tests.verify.target import Seen, look_at

SEEN = pytest.StashKey[Seen]()


class Lines:
    """Writes one line for each check, and for a failed one another that says what to do."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write what the check says, and how it went."""
        says = dict(report.user_properties)["says"]
        if report.failed:
            self._terminal.write_line(f"FAIL  {says}", red=True)
            self._terminal.write_line(f"      {report.longreprtext.strip().splitlines()[-1]}")
        elif report.when == "call":
            self._terminal.write_line(f"ok    {says}")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Look at the target; one line and exit code 4 if that is impossible."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    session.config.pluginmanager.register(Lines(terminal))
    try:
        session.config.stash[SEEN] = look_at(os.environ, lambda line: terminal.write_line(f"verify: {line}"))
    except UnreachableError as error:
        raise pytest.UsageError(f"verify: {error}") from None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the checks that make sense for this target."""
    seen = config.stash[SEEN]
    unfit = {"deployment": not seen.deployment, "inside": not seen.inside}
    items[:] = [item for item in items if not any(unfit.get(mark.name) for mark in item.iter_markers())]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note what the check says, its docstring's first line, for the output."""
    report = yield
    assert isinstance(item, pytest.Function)
    report.user_properties = [("says", (item.function.__doc__ or item.name).split("\n")[0].rstrip("."))]
    return report


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Count the checks, but leave the lines to pytest_runtest_logreport()."""
    return (report.outcome, "", "") if report.when == "call" else None


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Seen:
    """What was seen of the target."""
    return request.config.stash[SEEN]
