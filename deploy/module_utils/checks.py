"""The checks of `make verify`, run at the end of a deployment."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from ansible.module_utils.live import Live

FAILED = "the app is deployed, but not all checks pass: see the lines FAIL above"


def passes(checkout: str, target: Mapping[str, str]) -> bool:
    """Whether all checks pass; their lines are shown as they come.

    `target` has the variables TARGET, HOST, APP, URL, … that `make verify` gets: in its environment, not on its
    command line, where all users would see STATUS_TOKEN.
    """
    # What the outer make was given would go before them: `make scale-out TARGET=heroku`.
    inherited = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    with (
        Live() as live,
        subprocess.Popen(
            ["make", "--no-print-directory", "verify"],
            cwd=checkout,
            env={**inherited, **target},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout or ():
            live.line(line)
    return not process.returncode
