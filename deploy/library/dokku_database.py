"""Ansible module: an app on Dokku has a PostgreSQL.

Arguments: `host`, `app`, `service`, `folder`, `state`.
On a host with the postgres plugin that is a service of its own, linked to the app, which sets DATABASE_URL. On one
without it is the embedded PostgreSQL, with its data in a folder of the host's that is mounted at `folder`. An app
keeps the one it has: nothing here moves data. Two containers can't have the embedded one open, so Dokku then stops
the old one first. Returns `embedded`. `state: absent` removes the service; the mounted folder stays on the host.
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils.dokku import Dokku, difference, run_module

ARGUMENTS = {
    "service": {"type": "str", "required": True},
    "folder": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


def work(parameters: dict[str, Any], dokku: Dokku, check: bool) -> dict[str, Any]:
    """Make and attach what is missing."""
    app, exists = parameters["app"], dokku.exists(parameters["app"])
    if parameters["state"] == "absent":
        return remove(dokku, parameters["service"], check)
    mounted = exists and parameters["folder"] in mounts(dokku, app)
    embedded = mounted or not dokku.has_plugin("postgres")
    if embedded:
        missing = not mounted or "web" not in dokku.report("checks", app)["disabled-list"].split(",")
        if missing and not check:
            if not mounted:
                mount(dokku, app, parameters["folder"])
            dokku.run("checks:disable", app, "web")
        wanted = {"mount": f"{host_folder(app)} at {parameters['folder']}"}
    else:
        missing = not is_linked(dokku, parameters["service"], app)
        if missing and not check:
            link(dokku, parameters["service"], app)
        wanted = {"service": f"postgres {parameters['service']}"}
    return {"changed": missing, "embedded": embedded, "diff": difference({} if missing else wanted, wanted)}


def remove(dokku: Dokku, service: str, check: bool) -> dict[str, Any]:
    """Remove the service with its data if there is one."""
    there = dokku.has_plugin("postgres") and dokku.ask("postgres:exists", service).returncode == 0
    if there and not check:
        dokku.run("postgres:destroy", service, "--force")
    return {"changed": there, "diff": difference({"service": f"postgres {service}"} if there else {}, {})}


def is_linked(dokku: Dokku, service: str, app: str) -> bool:
    return dokku.ask("postgres:linked", service, app).returncode == 0


def link(dokku: Dokku, service: str, app: str) -> None:
    """Make the service unless it is there, and link it."""
    if dokku.ask("postgres:exists", service).returncode:
        dokku.run("postgres:create", service)
    dokku.run("postgres:link", service, app, "--no-restart")


def host_folder(app: str) -> str:
    return f"/var/lib/dokku/data/storage/{app}-postgres"


def mounts(dokku: Dokku, app: str) -> list[str]:
    """The folders of the containers that lie on the host."""
    return [one["container_path"] for one in dokku.read("storage:list", app)]


def mount(dokku: Dokku, app: str, folder: str) -> None:
    """Make a folder that the container's user may write to, and mount it."""
    dokku.run("storage:ensure-directory", "--chown", "heroku", f"{app}-postgres")
    dokku.run("storage:mount", app, f"{host_folder(app)}:{folder}")


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
