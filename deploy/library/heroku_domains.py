"""Ansible module: an app answers to host names of its owner's, with certificates that Heroku renews.

Arguments: `app`, `domains`. Domains that are not named stay. What DNS must say is shown for new ones.
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils.heroku import Heroku, read, run_module
from ansible.module_utils.live import Live

ARGUMENTS = {
    "app": {"type": "str", "required": True},
    "domains": {"type": "list", "elements": "str", "required": True},
}


def work(parameters: dict[str, Any], api: Heroku, check: bool) -> dict[str, Any]:
    """Add the names that are missing, then turn on Heroku's certificates."""
    path = f"/apps/{parameters['app']}"
    before = [one["hostname"] for one in read(api, f"{path}/domains", check=check, otherwise=[])]
    new = [name for name in parameters["domains"] if name not in before]
    certified = bool(read(api, path, check=check, otherwise={}).get("acm"))
    if not check:
        with Live() as live:
            for name in new:
                made = api.post(f"{path}/domains", {"hostname": name, "sni_endpoint": None})
                live.line(f"in DNS, make {name} a CNAME of {made['cname']}")
            if not certified:
                api.post(f"{path}/acm")
    after = [*before, *new]
    return {
        "changed": bool(new) or not certified,
        "diff": {"before": lines(before, certified=certified), "after": lines(after, certified=True)},
    }


def lines(names: list[str], *, certified: bool) -> str:
    return "".join(f"{name}\n" for name in names) + ("certificates by Heroku\n" if certified else "")


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
