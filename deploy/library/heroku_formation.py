"""Ansible module: an app's process types have the wanted number of dynos, all of one size.

Arguments: `app`, `quantities` (process type to number), `size`. Types that are not named keep their number.
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils.heroku import Heroku, read, run_module

ARGUMENTS = {
    "app": {"type": "str", "required": True},
    "quantities": {"type": "dict", "required": True},
    "size": {"type": "str", "required": True},
}


def work(parameters: dict[str, Any], api: Heroku, check: bool) -> dict[str, Any]:
    """Send the types that differ, in one request."""
    path = f"/apps/{parameters['app']}/formation"
    size = parameters["size"].lower()
    found = read(api, path, check=check, otherwise=[])
    before = {one["type"]: (one["quantity"], size_of(one)) for one in found}
    wanted = {name: (int(number), size) for name, number in parameters["quantities"].items()}
    # An app's dynos are of one size, those that are not named here included.
    wanted |= {name: (number, size) for name, (number, _) in before.items() if name not in wanted and number}
    differ = {
        name: (number, kind)
        for name, (number, kind) in wanted.items()
        if before.get(name) != (number, kind) and (number or before.get(name, (0, ""))[0])
    }
    if differ and not check:
        updates = [
            {"type": name, "quantity": number, "dyno_size": {"name": kind}} for name, (number, kind) in differ.items()
        ]
        api.patch(path, {"updates": updates})
    shown = {name: before[name] for name in differ if name in before}
    return {"changed": bool(differ), "diff": {"before": lines(shown), "after": lines(differ)}}


def size_of(one: dict[str, Any]) -> str:
    return str(one.get("size") or (one.get("dyno_size") or {}).get("name") or "").lower()


def lines(types: dict[str, tuple[int, str]]) -> str:
    return "".join(f"{name}: {number} x {size}\n" for name, (number, size) in sorted(types.items()))


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
