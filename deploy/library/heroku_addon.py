"""Ansible module: an app has an add-on of a service, provisioned.

Arguments: `app`, `plan` (SERVICE:PLAN). An add-on of the service on another plan stays as it is, with a warning:
moving a database to another plan is a decision of its own.
"""

from __future__ import annotations

import time
from typing import Any

from ansible.module_utils.heroku import Heroku, HerokuError, read, run_module
from ansible.module_utils.live import Live

ARGUMENTS = {"app": {"type": "str", "required": True}, "plan": {"type": "str", "required": True}}
LIMIT = 900.0  # seconds: a new database takes one to five minutes
PAUSE = 2.0


def work(parameters: dict[str, Any], api: Heroku, check: bool) -> dict[str, Any]:
    """Attach the add-on if there is none of its service, and wait until it is there."""
    app, plan = parameters["app"], parameters["plan"]
    service = plan.partition(":")[0]
    addons = read(api, f"/apps/{app}/addons", check=check, otherwise=[])
    own = [one for one in addons if one["addon_service"]["name"] == service]
    warning = ""
    if own and own[0]["plan"]["name"] != plan:
        warning = f"{app} has {own[0]['plan']['name']}, not {plan}: it stays; `heroku addons:upgrade` changes it"
    if not own and not check:
        own = [api.post(f"/apps/{app}/addons", {"plan": plan})]
        changed = True
    else:
        changed = not own
    if own and not check:
        wait_until_provisioned(api, f"/apps/{app}/addons/{own[0]['id']}", own[0])
    after = f"{own[0]['plan']['name'] if own else plan}\n"
    return {"changed": changed, "diff": {"before": "" if changed else after, "after": after}, "warning": warning}


def wait_until_provisioned(api: Heroku, path: str, addon: dict[str, Any]) -> None:
    """Raise HerokuError if the add-on is gone, or not there within LIMIT seconds."""
    deadline = time.monotonic() + LIMIT
    with Live() as live:
        if addon["state"] == "provisioning":
            live.line(f"waiting: Heroku makes {addon['name']}")
        while addon["state"] == "provisioning":
            if time.monotonic() > deadline:
                raise HerokuError(f"{addon['name']} is not there within {LIMIT:.0f} s: run this again later")
            time.sleep(PAUSE)
            addon = api.get(path)
    if addon["state"] != "provisioned":
        raise HerokuError(f"{addon['name']} is {addon['state']}: `heroku addons` tells more; run this again")


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
