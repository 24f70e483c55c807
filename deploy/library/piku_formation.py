"""Ansible module: how many processes of each of the Procfile's lines Piku runs, before the first push too.

Arguments: `app`, `host`, `quantities` (the line's name to a number). It takes effect with the next
release: Piku's own `ps:scale` restarts the app every time and can't be used before the first push, which would start
every line once.
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils.piku import Piku, PikuError, parse, run_module

ARGUMENTS = {"quantities": {"type": "dict", "required": True}}


def work(parameters: dict[str, Any], piku: Piku, check: bool) -> dict[str, Any]:
    """Write the numbers that differ."""
    before = parse(piku.read("SCALING"), ":")
    wanted = before | {name: str(int(number)) for name, number in parameters["quantities"].items()}
    if int(wanted.get("web", "0")) > 1:
        raise PikuError("dynos: Piku gives every web process the same port, so there can be only one")
    if before != wanted and not check:
        piku.write("SCALING", lines(wanted))
    return {"changed": before != wanted, "diff": {"before": lines(before), "after": lines(wanted)}}


def lines(numbers: dict[str, str]) -> str:
    return "".join(f"{name}:{number}\n" for name, number in numbers.items())


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
