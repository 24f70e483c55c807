"""Ansible module: the checks of `make verify` pass.

Arguments: `checkout` (folder), `target` (the variables TARGET, HOST, APP, URL, … that `make verify` gets). Its lines
are shown as they come; nothing is changed.
"""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.checks import FAILED, passes


def main() -> None:
    """Run the checks, or fail if one of them does."""
    module = AnsibleModule(
        {"checkout": {"type": "path", "required": True}, "target": {"type": "dict", "required": True}},
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False)
    if not passes(module.params["checkout"], module.params["target"]):
        module.fail_json(msg=FAILED)
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
