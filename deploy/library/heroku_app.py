"""Ansible module: a Heroku app is there, on its stack and with its buildpacks, or is not there.

Arguments: `app`, `region`, `stack`, `team` (of a new app), `buildpacks` (names or URLs), `state`.
Returns `address`, the app's own.
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils.heroku import Heroku, HerokuError, read, run_module

ARGUMENTS = {
    "app": {"type": "str", "required": True},
    "region": {"type": "str", "default": "us"},
    "stack": {"type": "str", "default": ""},
    "team": {"type": "str", "default": ""},
    "buildpacks": {"type": "list", "elements": "str", "default": []},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


def work(parameters: dict[str, Any], api: Heroku, check: bool) -> dict[str, Any]:
    """Make, change or remove the app."""
    name = parameters["app"]
    app = find(api, name)
    if parameters["state"] == "absent":
        if app and not check:
            api.delete(f"/apps/{name}")
        return {"changed": bool(app), "diff": difference([f"app {name}"] if app else [], [])}
    if app and parameters["region"] != app["region"]["name"]:
        raise HerokuError(
            f"{name} is in {app['region']['name']}, not {parameters['region']}: an app can't move: "
            "correct `region`, or use another APP"
        )
    before = state(app, read(api, f"/apps/{name}/buildpack-installations", check=check, otherwise=[]) if app else [])
    wanted = {"app": name, "stack": parameters["stack"], "buildpacks": parameters["buildpacks"]}
    if not check:
        if not app:
            app = create(api, parameters)
        elif before["stack"] != wanted["stack"]:
            app = api.patch(f"/apps/{name}", {"build_stack": wanted["stack"]})
        if before.get("buildpacks") != wanted["buildpacks"]:
            updates = [{"buildpack": one} for one in wanted["buildpacks"]]
            api.put(f"/apps/{name}/buildpack-installations", {"updates": updates})
    return {
        "changed": before != wanted,
        "diff": difference(lines(before), lines(wanted)),
        "address": app["web_url"] if app else f"https://{name}.herokuapp.com/",
    }


def find(api: Heroku, name: str) -> dict[str, Any] | None:
    """The app, or None."""
    try:
        return api.get(f"/apps/{name}")
    except HerokuError as error:
        if error.status == 404:
            return None
        raise


def create(api: Heroku, parameters: dict[str, Any]) -> dict[str, Any]:
    """Make the app, in the user's account or a team."""
    new = {"name": parameters["app"], "region": parameters["region"], "stack": parameters["stack"]}
    return (
        api.post("/teams/apps", {**new, "team": parameters["team"]}) if parameters["team"] else api.post("/apps", new)
    )


def state(app: dict[str, Any] | None, installations: list[dict[str, Any]]) -> dict[str, Any]:
    """What of the app this module looks after. The next build's stack counts: it becomes the app's then."""
    if not app:
        return {}
    packs = [one["buildpack"] for one in sorted(installations, key=lambda one: one["ordinal"])]
    return {
        "app": app["name"],
        "stack": app["build_stack"]["name"],
        "buildpacks": [pack.get("name") or pack["url"] for pack in packs],
    }


def lines(one: dict[str, Any]) -> list[str]:
    return [f"{key}: {', '.join(value) if isinstance(value, list) else value}" for key, value in one.items()]


def difference(before: list[str], after: list[str]) -> dict[str, str]:
    return {"before": "".join(f"{one}\n" for one in before), "after": "".join(f"{one}\n" for one in after)}


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
