"""Ansible module: an app's environment variables have the wanted values, without a restart.

Arguments: `host`, `app`, `values` (a value of null removes the variable), `generated`: names that get a random value
if they have none, and keep it. Others stay. The diff shows names, never a value.
"""

from __future__ import annotations

import json
from typing import Any

from ansible.module_utils.config import change, names_only
from ansible.module_utils.dokku import Dokku, run_module

ARGUMENTS = {
    "values": {"type": "dict", "required": True, "no_log": True},
    "generated": {"type": "list", "elements": "str", "default": []},
}


def work(parameters: dict[str, Any], dokku: Dokku, check: bool) -> dict[str, Any]:
    """Set what differs: the release that follows takes it over."""
    app = parameters["app"]
    current = dokku.read("config:export", app) if not check or dokku.exists(app) else {}
    changes = change(current, parameters["values"], parameters["generated"])
    new = {name: value for name, value in changes.items() if value is not None}
    gone = [name for name, value in changes.items() if value is None]
    if not check:
        if new:
            # By stdin, where no process list shows it; without --quiet Dokku would print every value.
            words = ("--quiet", "config:import", "--no-restart", "--format", "json", app, "-")
            dokku.run(*words, stdin=json.dumps(new))
        if gone:
            dokku.run("config:unset", "--no-restart", app, *gone)
    return {"changed": bool(changes), "diff": names_only(current, changes)}


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
