"""Ansible module: a Dokku app is there, set up as wanted, or is not there.

Arguments: `host`, `app`, `state`; `properties`, what `PLUGIN:set` sets, by plugin (`{"ps": {"restart-policy":
"unless-stopped"}}`; an empty value unsets); `buildpacks`, in order; `build_options`, docker's options for the build;
`memory`, the limit of each container; `checked`, whether a new container is checked before the old one goes.
A lock that a failed deployment has left is removed. Returns `address`, where the host serves the app.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from typing import Any

from ansible.module_utils.dokku import Dokku, DokkuError, difference, run_module

ARGUMENTS = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "properties": {"type": "dict", "default": {}},
    "buildpacks": {"type": "list", "elements": "str", "default": []},
    "build_options": {"type": "list", "elements": "str", "default": []},
    "memory": {"type": "str", "default": ""},
}


def work(parameters: dict[str, Any], dokku: Dokku, check: bool) -> dict[str, Any]:
    """Make, change or remove the app."""
    app, exists = parameters["app"], dokku.exists(parameters["app"])
    if parameters["state"] == "absent":
        if exists and not check:
            dokku.run("--force", "apps:destroy", app)
        return {"changed": exists, "diff": difference({"app": app if exists else ""}, {})}
    if not exists and not check:
        dokku.run("apps:create", app)
    reports = read(dokku, parameters) if exists or not check else {}
    before = state(dokku, parameters, reports) if reports else {}
    wanted = {
        f"{plugin} {name}": text(value)
        for plugin, values in parameters["properties"].items()
        for name, value in values.items()
    }
    wanted["buildpacks"] = [kept_buildpack(one) for one in parameters["buildpacks"]]
    wanted["build options"] = kept_options(parameters["build_options"])
    wanted |= {"memory": parameters["memory"]}
    stuck = exists and is_stuck(dokku, app)
    if not check:
        if stuck:
            dokku.run("apps:unlock", app)
        apply(dokku, parameters, before, wanted)
    was = {**before, "app": app if exists else "", "locked": "by a deployment that ended" if stuck else ""}
    return {
        "changed": not exists or stuck or before != wanted,
        "diff": difference(was, {**wanted, "app": app}),
        "address": address(dokku, reports) if reports else f"http://{dokku.host}",
    }


def read(dokku: Dokku, parameters: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The reports of all plugins that this module needs, asked for together."""
    plugins = {*parameters["properties"], "buildpacks", "docker-options", "resource", "ports", "domains"}
    return dokku.reports(plugins, parameters["app"])


def state(dokku: Dokku, parameters: dict[str, Any], reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the app has of what this module looks after."""
    found: dict[str, Any] = {}
    for plugin, values in parameters["properties"].items():
        for name in values:
            if name not in reports[plugin]:
                raise DokkuError(f"{dokku.host}: {plugin} has no property {name}: correct it, or update Dokku")
            found[f"{plugin} {name}"] = reports[plugin][name]
    found["buildpacks"] = [one for one in reports["buildpacks"]["list"].split(",") if one]
    found["build options"] = kept_options(own_options(reports["docker-options"]["build-list"]))
    found["memory"] = reports["resource"].get("_default_.limit.memory", "")
    return found


def apply(dokku: Dokku, parameters: dict[str, Any], before: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Set what differs. Nothing here restarts the app."""
    app = parameters["app"]
    for plugin, values in parameters["properties"].items():
        for name, value in values.items():
            if before[f"{plugin} {name}"] != text(value):
                dokku.run(f"{plugin}:set", app, name, *([text(value)] if text(value) else []))
    if before["buildpacks"] != wanted["buildpacks"]:
        dokku.run("buildpacks:clear", app)  # adding alone would make duplicates
        for one in wanted["buildpacks"]:
            dokku.run("buildpacks:add", app, one)
    set_options(dokku, app, before["build options"], wanted["build options"])
    if before["memory"] != wanted["memory"]:
        limit = ["limit", "--memory", wanted["memory"]] if wanted["memory"] else ["limit-clear"]
        dokku.run(f"resource:{limit[0]}", *limit[1:], app)


def set_options(dokku: Dokku, app: str, before: list[str], wanted: list[str]) -> None:
    """Docker's options for the build."""
    for verb, options in (
        ("remove", [one for one in before if one not in wanted]),
        ("add", [one for one in wanted if one not in before]),
    ):
        for option in options:
            dokku.run(f"docker-options:{verb}", app, "build", option)


def text(value: Any) -> str:
    """A value as Dokku reports it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def kept_buildpack(name: str) -> str:
    """A buildpack as Dokku keeps it: `heroku/python` becomes an address, which stays as it is."""
    short = re.fullmatch(r"([\w-]+)/([\w-]+)", name, re.ASCII)
    if not short:
        return name
    owner = "heroku" if short[1] == "heroku-community" else short[1]
    return f"https://github.com/{owner}/heroku-buildpack-{short[2]}.git"


def kept_options(options: Iterable[str]) -> list[str]:
    """Docker's options as Dokku keeps them: each flag with its values for itself, quoted anew, in order, once.

    Raises DokkuError for one that no shell could split into words.
    """
    flags: list[list[str]] = []
    for option in options:
        try:
            words = shlex.split(option)
        except ValueError as error:
            raise DokkuError(f"build_options: {option}: {error}: correct its quotes") from None
        for number, word in enumerate(words):
            if number == 0 or (word.startswith("-") and word != "-"):
                flags.append([])
            flags[-1].append(word)
    return sorted({shlex.join(flag) for flag in flags})


def own_options(options: list[str]) -> list[str]:
    """The options without those by which plugins link their services."""
    return [one for one in options if not one.startswith("--link ")]


def is_stuck(dokku: Dokku, app: str) -> bool:
    """Whether the app is locked by a deployment that is over. Raises DokkuError if one is under way."""
    if dokku.ask("apps:locked", app).returncode:
        return False
    # `status` goes on saying "running" of one that broke off; `display_status` looks whether its process lives.
    if any(one["display_status"] == "running" for one in dokku.read("builds:list", app)):
        raise DokkuError(f"{app}: another deployment of it is under way: wait for it and run this again")
    return True


def address(dokku: Dokku, reports: dict[str, dict[str, Any]]) -> str:
    """The app's first domain; without any, the host with the port that Dokku chose."""
    ports, domains = reports["ports"], reports["domains"]
    mapped = json.loads(ports["map-json"]) or json.loads(ports["map-detected-json"]) or []
    schemes = {one["scheme"]: one["host_port"] for one in mapped}
    scheme = "https" if "https" in schemes else "http"
    port = schemes.get(scheme, 80)
    names = domains["app-vhosts"].split() if domains["app-enabled"] == "true" else []
    usual = {"http": 80, "https": 443}[scheme]
    return f"{scheme}://{names[0] if names else dokku.host}" + ("" if port == usual else f":{port}")


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
