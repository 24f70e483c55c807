"""Ansible module: an app's settings on Piku are as wanted, before its first push too.

Arguments: `app`, `host`, `values` (null removes one), `generated` (names that get a random value if
they have none). Variables that are not named stay as they are. No value is ever shown, or in a command line.
They take effect with the next release: the module piku_release sees that there is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible.module_utils.config import change, names_only
from ansible.module_utils.piku import Piku, PikuError, parse, run_module

ARGUMENTS = {
    "values": {"type": "dict", "required": True, "no_log": True},
    "generated": {"type": "list", "elements": "str", "default": []},
}
LONGEST_GRACE = 25  # seconds: `piku stop` kills after 30, and the database needs a moment at the end
# What uWSGI and Piku would change on the value's way to the process: uWSGI takes % and $ for its own, drops spaces,
# and reads @(name) as a file, without which it does not start; a second line would be another setting.
CORRUPTED = re.compile(r"[%$\r\n]|@\(|  |^\s|\s$")


def work(parameters: dict[str, Any], piku: Piku, check: bool) -> dict[str, Any]:
    """Write what differs."""
    text = piku.read("ENV")
    current = parse(text)
    changes = change(current, parameters["values"], parameters["generated"])
    refuse_corrupted(changes)
    if changes and not check:
        piku.write("ENV", edited(text, changes))
    return {"changed": bool(changes), "diff": names_only(current, changes)}


def refuse_corrupted(changes: Mapping[str, str | None]) -> None:
    """Raise PikuError for a setting that would not reach the app as it is."""
    for name, value in changes.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise PikuError(f"config: {name!r} is no name of an environment variable: use letters, digits and _")
        if name == "PYTHON_VERSION" and value not in (None, "3"):
            raise PikuError("config: PYTHON_VERSION: Piku stops the app over any value but 3: remove it")
        if name == "DYNO_GRACE" and value and int(value) > LONGEST_GRACE:
            raise PikuError(f"grace: {value}: Piku kills 30 s after the signal: use {LONGEST_GRACE} or less")
        if value is not None and CORRUPTED.search(value):
            raise PikuError(
                f"config: {name}: Piku would hand it to the app changed: use a value without "
                "%, $, @(, line ends, spaces at an end or two in a row"
            )


def edited(text: str, changes: Mapping[str, str | None]) -> str:
    """The file with the changes; comments and the other lines stay."""
    kept = [line for line in text.splitlines() if not (line[:1] != "#" and line.split("=")[0].strip() in changes)]
    new = [f"{name}={value}" for name, value in sorted(changes.items()) if value is not None]
    return "".join(f"{line}\n" for line in [*kept, *new])


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
