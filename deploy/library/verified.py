"""Ansible module: the checks of `make verify` pass.

Arguments: `checkout` (folder), `target` (the variables TARGET, HOST, APP, URL, … that `make verify` gets). Its lines
are shown as they come; nothing is changed.
"""

from __future__ import annotations

import os
import subprocess

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.live import Live


def main() -> None:
    """Run the checks, or fail if one of them does."""
    module = AnsibleModule(
        {"checkout": {"type": "path", "required": True}, "target": {"type": "dict", "required": True}},
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False)
    with (
        Live() as live,
        subprocess.Popen(
            ["make", "--no-print-directory", "verify"],
            cwd=module.params["checkout"],
            env={**os.environ, **module.params["target"]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout or ():
            live.line(line)
    if process.returncode:
        module.fail_json(msg="the app is deployed, but not all checks pass: see the lines FAIL above")
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
