"""Ansible module: the checkout has a commit to deploy, and nothing that is not committed.

Arguments: `folder`; `dirty`, which leaves uncommitted changes behind instead of refusing. Returns `commit`, its id.
"""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.checkout import Checkout, CheckoutError


def main() -> None:
    """Find the commit, or fail with the names of the changed files."""
    module = AnsibleModule(
        {"folder": {"type": "path", "required": True}, "dirty": {"type": "bool", "default": False}},
        supports_check_mode=True,
    )
    checkout = Checkout(module.params["folder"])
    try:
        checkout.require_clean(dirty=module.params["dirty"])
        module.exit_json(changed=False, commit=checkout.head())
    except CheckoutError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
