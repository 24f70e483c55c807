"""Ansible module: waits until every container of an app on Dokku runs.

Arguments: `host`, `app`, `wait` (seconds). Nothing is changed. A container whose restart policy has given up, or that
has ended with a code that the policy takes for success, stays down though the deployment was one.
"""

from __future__ import annotations

import time
from typing import Any

from ansible.module_utils.dokku import Dokku, DokkuError, run_module
from ansible.module_utils.dokku_containers import containers
from ansible.module_utils.live import Live

ARGUMENTS = {"wait": {"type": "int", "required": True}}
PAUSE = 1.0  # seconds between two looks


def work(parameters: dict[str, Any], dokku: Dokku, check: bool) -> dict[str, Any]:
    """Look until all run. Raises DokkuError when time is up."""
    if check:
        return {"changed": False}
    deadline = time.monotonic() + parameters["wait"]
    shown = ""
    with Live() as live:
        while waiting := not_up(dokku, parameters["app"]):
            if time.monotonic() > deadline:
                raise DokkuError(f"after {parameters['wait']} s: {waiting}: see `dokku logs {parameters['app']}`")
            if waiting != shown:
                live.line(f"waiting: {waiting}")
                shown = waiting
            time.sleep(PAUSE)
    return {"changed": False}


def not_up(dokku: Dokku, app: str) -> str:
    """Which containers do not run, and why; empty if all do."""
    found = containers(dokku, app)
    return ", ".join(f"{one.name} is {one.state}" for one in found if not one.running) if found else "no container"


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
