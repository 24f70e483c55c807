"""Process titles: `ps` shows the inner process's name and what the process is."""

from __future__ import annotations

import os

from setproctitle import getproctitle, setproctitle

# Has it find the place of titles now: it looks beside the environment's first variable, which may be replaced later.
getproctitle()


def set_title(what: str, default: str = "boiler") -> None:
    """Title this process `NAME: what`, NAME being the inner process that the boiler started it as.

    `default` stands for the name where no boiler started it (plain honcho, a process type of its own).
    """
    setproctitle(f"{os.environ.get('BOILER_PROCESS', default)}: {what}")
