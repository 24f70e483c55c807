"""Ansible module: the checks of `make verify` pass, made over HTTP with the app's own token.

Arguments: `app`, `url`, `checkout` (folder). Its lines are shown as they come; nothing is changed.
"""

from __future__ import annotations

import os
import subprocess
from typing import Any

from ansible.module_utils.heroku import Heroku, HerokuError, run_module
from ansible.module_utils.live import Live

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
    inherited = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}  # the outer make's variables
    environ = {**inherited, "TARGET": "url", "URL": parameters["url"].rstrip("/"), "STATUS_TOKEN": token}
    with (
        Live() as live,
        subprocess.Popen(
            ["make", "--no-print-directory", "verify"],
            cwd=parameters["checkout"],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout or ():
            live.line(line)
    if process.returncode:
        raise HerokuError("the app is deployed, but not all checks pass: see the lines FAIL above")
    return {"changed": False}


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
