"""Ansible module: the checkout has a git remote for an app on Dokku, in the form that dokku-toolbelt reads.

Arguments: `checkout` (folder), `host`, `app`. There is one, called dokku, for the app that was deployed last: of
several the toolbelt would take the first by alphabet.
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils.dokku import Dokku, difference, run_module

ARGUMENTS = {"checkout": {"type": "path", "required": True}}
REMOTE = "dokku"


def work(parameters: dict[str, Any], dokku: Dokku, check: bool) -> dict[str, Any]:
    """Add or change the remote."""
    git = ["git", "-C", parameters["checkout"]]
    names = dokku.call([*git, "remote"]).split()
    before = dokku.call([*git, "remote", "get-url", REMOTE]).strip() if REMOTE in names else ""
    wanted = f"dokku@{dokku.host}:{parameters['app']}"
    if before != wanted and not check:
        dokku.call([*git, "remote", "set-url" if before else "add", REMOTE, wanted])
    return {"changed": before != wanted, "diff": difference({REMOTE: before}, {REMOTE: wanted})}


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
