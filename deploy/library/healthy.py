"""Ansible module: waits until an app says of itself that it is well.

Arguments: `url`, the app's address; `wait`, the seconds it may take. Nothing is changed.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.live import Live

PAUSE = 1.0  # seconds between two questions
TIMEOUT = 40  # seconds for an answer: longer than a platform's router waits for the app


def main() -> None:
    """Ask /healthz until it answers 200, or fail with its last answer."""
    module = AnsibleModule(
        {"url": {"type": "str", "required": True}, "wait": {"type": "int", "required": True}},
        supports_check_mode=True,
    )
    url, wait = module.params["url"].rstrip("/") + "/healthz", module.params["wait"]
    deadline = time.monotonic() + wait
    shown = ""
    with Live() as live:
        while fault := unhealthy(url):
            if time.monotonic() > deadline:
                break
            if fault != shown:
                live.line(f"waiting: {fault}")
                shown = fault
            time.sleep(PAUSE)
    if fault:
        module.fail_json(msg=f"not healthy within {wait} s: {url}: {fault}: look into the app's log")
    module.exit_json(changed=False)


def unhealthy(url: str) -> str:
    """Why the app is not healthy, as far as can be seen from here; empty if it is."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT):  # noqa: S310 (the platform's own address)
            return ""
    except urllib.error.HTTPError as error:
        return f"{error.code} {reasons(error.read()) or error.reason}"
    except OSError as error:
        return str(getattr(error, "reason", error))


def reasons(body: bytes) -> str:
    """What /healthz says in its JSON; empty if it was not the app that answered."""
    try:
        return " ".join(json.loads(body)["reasons"])
    except (ValueError, KeyError, TypeError):
        return ""


if __name__ == "__main__":
    main()
