"""Ansible module: waits until every dyno of an app runs the current release.

Arguments: `app`, `wait` (seconds). Nothing is changed.
"""

from __future__ import annotations

import time
from typing import Any

from ansible.module_utils.heroku import Heroku, HerokuError, run_module
from ansible.module_utils.heroku_releases import releases
from ansible.module_utils.live import Live

ARGUMENTS = {"app": {"type": "str", "required": True}, "wait": {"type": "int", "required": True}}
PAUSE = 1.0  # seconds between two looks


def work(parameters: dict[str, Any], api: Heroku, check: bool) -> dict[str, Any]:
    """Look until all are up. Raises HerokuError if one has crashed, or time is up."""
    app = parameters["app"]
    if check:
        return {"changed": False}
    deadline = time.monotonic() + parameters["wait"]
    shown = ""
    with Live() as live:
        current = next((one["version"] for one in releases(api, app, 200) if one.get("current")), 0)
        while late := not_up(api.get(f"/apps/{app}/dynos"), current):
            waiting = ", ".join(sorted(f"{one['name']} is {one['state']} (v{version(one)})" for one in late))
            if any(one["state"] == "crashed" and version(one) >= current for one in late):
                raise HerokuError(f"{waiting}: look into the app's log (`heroku logs`), then run this again")
            if time.monotonic() > deadline:
                raise HerokuError(f"after {parameters['wait']} s: {waiting}: look into the app's log (`heroku logs`)")
            if waiting != shown:
                live.line(f"waiting: {waiting}")
                shown = waiting
            time.sleep(PAUSE)
    return {"changed": False}


def not_up(dynos: list[dict[str, Any]], current: int) -> list[dict[str, Any]]:
    """The dynos that do not run the current release yet; one-off dynos do not count, nor does one that sleeps."""
    lasting = [one for one in dynos if one["type"] not in ("run", "release", "scheduler")]
    return [one for one in lasting if one["state"] not in ("up", "idle") or version(one) < current]


def version(dyno: dict[str, Any]) -> int:
    return dyno["release"]["version"]


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
