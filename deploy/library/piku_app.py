"""Ansible module: an app may be put on a Piku host, or is gone from it.

Arguments: `app`, `host`, `state`.
Piku makes an app at its first push; what can be known before is whether its name is free of others' on the host.
The folder ~/.piku/data/APP, where the embedded PostgreSQL is, stays on the host when the app goes.
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils.piku import Piku, run_module

ARGUMENTS = {"state": {"type": "str", "choices": ["present", "absent"], "default": "present"}}


def work(parameters: dict[str, Any], piku: Piku, check: bool) -> dict[str, Any]:
    """Look, and remove the app if it is to go."""
    piku.refuse_neighbours()
    exists = piku.app in piku.apps()
    present = parameters["state"] == "present"
    if exists and not present and not check:
        piku.stop()  # Piku would take the code from under the jobs that run
        piku.call("destroy", piku.app)
    before, after = (f"app {piku.app}\n" if there else "" for there in (exists, present))
    return {"changed": exists != present, "diff": {"before": before, "after": after}}


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
