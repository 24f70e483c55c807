"""Ansible module: an app's config vars are as wanted, changed in one request: each request restarts the app.

Arguments: `app`, `values` (null removes one), `generated` (names that get a random value if they have none).
Variables that are not named stay as they are. No value is ever shown.
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils.config import change, names_only
from ansible.module_utils.heroku import Heroku, read, run_module
from ansible.module_utils.heroku_releases import settle
from ansible.module_utils.live import Live

ARGUMENTS = {
    "app": {"type": "str", "required": True},
    "values": {"type": "dict", "required": True, "no_log": True},
    "generated": {"type": "list", "elements": "str", "default": []},
}


def work(parameters: dict[str, Any], api: Heroku, check: bool) -> dict[str, Any]:
    """Send what differs, and see the release through that comes of it."""
    path = f"/apps/{parameters['app']}/config-vars"
    current = read(api, path, check=check, otherwise={})
    changes = change(current, parameters["values"], parameters["generated"])
    if changes and not check:
        api.patch(path, changes)
        with Live() as live:
            settle(api, parameters["app"], live)
    return {"changed": bool(changes), "diff": names_only(current, changes)}


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
