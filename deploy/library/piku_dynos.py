"""Ansible module: the dyno that runs is one that the last release has started; it is waited for.

Arguments: `app`, `host`, `wait`, the seconds it may take. Piku does not look whether an app starts,
and the old dyno answers for some seconds after Piku's command has ended, longer while it finishes its jobs.
"""

from __future__ import annotations

import json
import time
from typing import Any

from ansible.module_utils.live import Live
from ansible.module_utils.piku import Piku, PikuError, run_module

ARGUMENTS = {"wait": {"type": "int", "required": True}}
PAUSE = 1.0  # seconds between two questions
# Piku writes LIVE_ENV before it starts anything of a release.
LOOK = """
date +%s
stat -c %Y ../../envs/{app}/LIVE_ENV
app/boil status --json 2>&1
true
"""
LOG = "tail -n 20 ../../logs/{app}/web.1.log"


def work(parameters: dict[str, Any], piku: Piku, check: bool) -> dict[str, Any]:
    """Wait, or fail with the end of the app's log."""
    if check:
        return {"changed": False}
    deadline = time.monotonic() + parameters["wait"]
    shown = ""
    with Live() as live:
        while fault := missing(piku.run(LOOK.format(app=piku.app))):
            if time.monotonic() > deadline:
                for line in piku.run(LOG.format(app=piku.app)).splitlines():
                    live.line(line)
                raise PikuError(f"{piku.host}: {piku.app} is not up within {parameters['wait']} s: {fault}: see above")
            if fault != shown:
                live.line(f"waiting: {fault}")
                shown = fault
            time.sleep(PAUSE)
    return {"changed": False}


def missing(output: str) -> str:
    """What is missing for the release's dyno to be up; empty if it is."""
    now, released, status = output.split("\n", 2)
    try:
        found = json.loads(status)
    except ValueError:
        return status.strip() or "no dyno yet"
    if int(now) - found["boiler"]["uptime"] < int(released):
        return "the dyno from before finishes its work"
    states = {one["name"]: one["state"] for one in found["processes"]}
    return ", ".join(f"{name} is {state}" for name, state in states.items() if state != "running")


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
