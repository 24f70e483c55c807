"""Ansible module: an app may be put on a Piku host, or is gone from it.

Arguments: `app`, `host`, `state`, and `wait`, the seconds that a stopping app may take.
Piku makes an app at its first push; what can be known before is whether its name is free of others' on the host.
The folder ~/.piku/data/APP, where the embedded PostgreSQL is, stays on the host when the app goes.
"""

from __future__ import annotations

import time
from typing import Any

from ansible.module_utils.piku import Piku, PikuError, run_module

ARGUMENTS = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "wait": {"type": "int", "default": 60},
}
PAUSE = 1.0  # seconds between two looks at what still runs


def work(parameters: dict[str, Any], piku: Piku, check: bool) -> dict[str, Any]:
    """Look, and remove the app if it is to go."""
    piku.refuse_neighbours()
    exists = piku.app in piku.apps()
    present = parameters["state"] == "present"
    if exists and not present and not check:
        remove(piku, parameters["wait"])
    before, after = (f"app {piku.app}\n" if there else "" for there in (exists, present))
    return {"changed": exists != present, "diff": {"before": before, "after": after}}


def remove(piku: Piku, wait: int) -> None:
    """Stop the app, wait until its jobs are done, then remove it: Piku would take the code from under it."""
    try:
        piku.call("stop", piku.app)
    except PikuError as error:
        if "not deployed" not in str(error):  # it was stopped before
            raise
    deadline = time.monotonic() + wait
    while running(piku):
        if time.monotonic() > deadline:
            raise PikuError(f"{piku.host}: {piku.app} still runs {wait} s after `piku stop`: look into its log")
        time.sleep(PAUSE)
    piku.call("destroy", piku.app)


def running(piku: Piku) -> bool:
    """Whether the app's dyno is there: its boiler has the lock until nothing of it is left."""
    return "running" in piku.run("app/boil status >/dev/null 2>&1 && echo running; true")


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
