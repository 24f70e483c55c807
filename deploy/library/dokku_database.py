"""Ansible module: an app on Dokku has a PostgreSQL.

Arguments: `host`, `app`, `service`, `folder`, `owner` (whom the builder's containers run as, in Dokku's word), `state`.
On a host with the postgres plugin that is a service of its own, linked to the app, which sets DATABASE_URL. On one
without it is the embedded PostgreSQL, with its data in a folder of the host's that is mounted at `folder`. An app
keeps the one it has, also a DATABASE_URL that was set by hand: nothing here moves data. Two containers can't have the
embedded one open, so Dokku then stops the old one first. Returns `embedded`.
`state: absent` removes the service; the mounted folder stays on the host.
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils.dokku import Dokku, difference, run_module

ARGUMENTS = {
    "service": {"type": "str", "required": True},
    "folder": {"type": "str", "required": True},
    "owner": {"type": "str", "choices": ["herokuish", "heroku"], "default": "heroku"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


def work(parameters: dict[str, Any], dokku: Dokku, check: bool) -> dict[str, Any]:
    """Make and attach what is missing."""
    if parameters["state"] == "absent":
        return remove(dokku, parameters["service"], check)
    app = parameters["app"]
    exists = not check or dokku.exists(app)
    service, folder = parameters["service"], parameters["folder"]
    mounted = exists and folder in mounts(dokku, app)
    if not mounted and exists and "DATABASE_URL" in dokku.read("config:export", app):
        return {"changed": False, "embedded": False}
    embedded = mounted or not dokku.has_plugin("postgres")
    missing = not mounted or "web" not in dokku.report("checks", app)["disabled-list"].split(",")
    if missing and not check:
        if not embedded:
            link(dokku, service, app)
        else:
            if not mounted:
                mount(dokku, app, folder, parameters["owner"])
            dokku.run("checks:disable", app, "web")
    wanted = {"mount": f"{host_folder(app)} at {folder}"} if embedded else {"service": f"postgres {service}"}
    return {"changed": missing, "embedded": embedded, "diff": difference({} if missing else wanted, wanted)}


def remove(dokku: Dokku, service: str, check: bool) -> dict[str, Any]:
    """Remove the service with its data if there is one."""
    there = dokku.has_plugin("postgres") and dokku.ask("postgres:exists", service).returncode == 0
    if there and not check:
        dokku.run("postgres:destroy", service, "--force")
    return {"changed": there, "diff": difference({"service": f"postgres {service}"} if there else {}, {})}


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


def mount(dokku: Dokku, app: str, folder: str, owner: str) -> None:
    """Make a folder that the container's user may write to, and mount it."""
    dokku.run("storage:ensure-directory", "--chown", owner, f"{app}-postgres")
    dokku.run("storage:mount", app, f"{host_folder(app)}:{folder}")


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
