"""Ansible module: an app on Dokku runs a commit, with the settings that it has now.

Arguments: `host`, `app`, `checkout` (folder), `commit` (its id), `branch` (the app's deploy-branch), `setup`:
whatever else takes effect with a new container only.
A new commit is pushed; if only settings changed, the app is built anew. Either is one restart. Output is shown as it
comes. When it fails, the containers before run on, and so does the commit before.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from typing import Any

from ansible.module_utils.dokku import Dokku, DokkuError, run_module, ssh_command
from ansible.module_utils.dokku_containers import SETUP, containers, is_deployed
from ansible.module_utils.live import Live

ARGUMENTS = {
    "checkout": {"type": "path", "required": True},
    "commit": {"type": "str", "required": True},
    "branch": {"type": "str", "required": True},
    "setup": {"type": "dict", "required": True},
}


def work(parameters: dict[str, Any], dokku: Dokku, check: bool) -> dict[str, Any]:
    """Push or rebuild if what runs is not what is wanted."""
    app, commit = parameters["app"], parameters["commit"]
    if check and not dokku.exists(app):
        return {"changed": True, "diff": {"before": "", "after": f"{commit}\n"}}
    git = Git(dokku, app, parameters["checkout"])
    pushed = git.pushed(parameters["branch"])
    config = dokku.read("config:export", app)
    wanted = fingerprint(config, parameters["setup"])
    running = containers(dokku, app) if is_deployed(dokku, app) else []
    stale = not running or any(not one.running or one.setup != wanted for one in running)
    if pushed == commit and not stale:
        return {"changed": False}
    if not check:
        if config.get(SETUP) != wanted:
            dokku.run("config:set", "--no-restart", app, f"{SETUP}={wanted}")
        with Live() as live:
            if pushed != commit:
                git.push(commit, parameters["branch"], live)
            else:
                dokku.run_live(live, "ps:rebuild", app)
    # A commit that runs on with other settings is a line of its own in the diff.
    before = f"{pushed}, other settings\n" if pushed == commit else f"{pushed}\n" if pushed else ""
    return {"changed": True, "diff": {"before": before, "after": f"{commit}\n"}}


def fingerprint(config: dict[str, str], setup: dict[str, Any]) -> str:
    """What tells two sets of settings apart; no value can be found from it, the app's secret key is in it."""
    taken = {name: value for name, value in config.items() if name not in (SETUP, "GIT_REV")}
    text = json.dumps([taken, setup], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Git:
    """git with the connection to the host that the modules share."""

    def __init__(self, dokku: Dokku, app: str, checkout: str) -> None:
        self.dokku = dokku
        self.address = f"dokku@{dokku.host}:{app}"
        self.command = ["git", "-C", checkout]
        self.environ = {"GIT_SSH_COMMAND": shlex.join(ssh_command()), "GIT_SSH_VARIANT": "ssh", "LC_ALL": "C"}

    def pushed(self, branch: str) -> str:
        """The commit that the host has on the branch, which it takes only if it could be deployed; or empty."""
        lines = self.dokku.call([*self.command, "ls-remote", self.address, f"refs/heads/{branch}"], **self.environ)
        return lines.split()[0] if lines.split() else ""

    def push(self, commit: str, branch: str, live: Live) -> None:
        """Have the commit built and released. By force: going back to an older commit is a deployment too."""
        push = ["push", "--force", "--no-verify", self.address, f"{commit}:refs/heads/{branch}"]
        try:
            self.dokku.watch([*self.command, *push], live, **self.environ)
        except DokkuError as error:
            raise DokkuError(f"the deployment failed, what ran before runs on: the reason is above ({error})") from None


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
