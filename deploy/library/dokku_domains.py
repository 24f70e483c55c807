"""Ansible module: an app on Dokku answers to the wanted host names, by TLS if an address for letsencrypt is given.

Arguments: `host`, `app`, `domains` (empty: those that the host gives stay), `letsencrypt_email`.
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils.dokku import Dokku, DokkuError, difference, run_module
from ansible.module_utils.live import Live

ARGUMENTS = {
    "domains": {"type": "list", "elements": "str", "default": []},
    "letsencrypt_email": {"type": "str", "default": ""},
}


def work(parameters: dict[str, Any], dokku: Dokku, check: bool) -> dict[str, Any]:
    """Set the names if they differ, then have a certificate made if there is none."""
    app, email = parameters["app"], parameters["letsencrypt_email"]
    if email and not dokku.has_plugin("letsencrypt"):
        raise DokkuError(
            f"{dokku.host} has no letsencrypt plugin: install it there "
            "(`dokku plugin:install https://github.com/dokku/dokku-letsencrypt.git`), or unset letsencrypt_email"
        )
    exists = not check or dokku.exists(app)
    report = dokku.report("domains", app) if exists else {"app-vhosts": "", "app-enabled": "false"}
    before = {"domains": report["app-vhosts"].split() if report["app-enabled"] == "true" else []}
    wanted = {"domains": parameters["domains"] or before["domains"]}
    before["certificate"] = "letsencrypt" if email and exists and is_certified(dokku, app) else ""
    wanted["certificate"] = "letsencrypt" if email else ""
    if not check:
        if set(before["domains"]) != set(wanted["domains"]):
            dokku.run("domains:set", app, *wanted["domains"])
        if email and not before["certificate"]:
            dokku.run("letsencrypt:set", app, "email", email)
            with Live() as live:
                dokku.run_live(live, "letsencrypt:enable", app)
    changed = set(before["domains"]) != set(wanted["domains"]) or before["certificate"] != wanted["certificate"]
    return {"changed": changed, "diff": difference(before, wanted)}


def is_certified(dokku: Dokku, app: str) -> bool:
    return dokku.ask("letsencrypt:active", app).stdout.strip() == "true"


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
