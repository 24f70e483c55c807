"""Ansible module: the checks of `make verify` pass, made over HTTP with the app's own token.

Arguments: `app`, `url`, `checkout` (folder). Its lines are shown as they come; nothing is changed.
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils.checks import FAILED, passes
from ansible.module_utils.heroku import Heroku, HerokuError, run_module

ARGUMENTS = {
    "app": {"type": "str", "required": True},
    "url": {"type": "str", "required": True},
    "checkout": {"type": "path", "required": True},
}


def work(parameters: dict[str, Any], api: Heroku, check: bool) -> dict[str, Any]:
    """Run the checks. Raises HerokuError if one fails."""
    if check:
        return {"changed": False}
    token = api.get(f"/apps/{parameters['app']}/config-vars")["STATUS_TOKEN"]
    target = {"TARGET": "url", "URL": parameters["url"].rstrip("/"), "STATUS_TOKEN": token}
    if not passes(parameters["checkout"], target):
        raise HerokuError(FAILED)
    return {"changed": False}


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
