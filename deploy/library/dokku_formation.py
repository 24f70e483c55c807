"""Ansible module: the process types of an app on Dokku have the wanted number of containers.

Arguments: `host`, `app`, `quantities` (process type to number). Types that are not named keep their number.
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils.dokku import Dokku, DokkuError, difference, run_module
from ansible.module_utils.live import Live

ARGUMENTS = {"quantities": {"type": "dict", "required": True}}


def work(parameters: dict[str, Any], dokku: Dokku, check: bool) -> dict[str, Any]:
    """Scale the types that differ. Raises DokkuError where the app's app.json is who decides."""
    app = parameters["app"]
    before = {"web": 1}  # what a new app gets
    if not check or dokku.exists(app):
        before = {one["process_type"]: one["quantity"] for one in dokku.read("ps:scale", app)}
    wanted = {name: int(number) for name, number in parameters["quantities"].items()}
    differ = {name: number for name, number in wanted.items() if before.get(name, 0) != number}
    if differ and not check and dokku.report("ps", app)["can-scale"] != "true":
        raise DokkuError(
            f"{app}: its app.json has a `formation`, which decides the number of containers: change it there, "
            "or remove it, and deploy"
        )
    if differ and not check:
        with Live() as live:
            dokku.run_live(live, "ps:scale", app, *(f"{name}={number}" for name, number in differ.items()))
    return {"changed": bool(differ), "diff": difference({name: before.get(name) for name in differ}, differ)}


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
