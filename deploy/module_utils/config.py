"""The environment variables of an app: what has to change, shown without a value."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Any

SECRET_BYTES = 50  # of randomness; Django wants a key of 50 characters or more


def change(current: Mapping[str, str], wanted: Mapping[str, Any], generated: Iterable[str]) -> dict[str, str | None]:
    """The variables to set, and those to remove (None), so that `current` becomes as wanted.

    The names in `generated` get a random value if they have none; nothing else is touched.
    """
    texts = {name: _text(value) for name, value in wanted.items()}
    new = {name: secrets.token_urlsafe(SECRET_BYTES) for name in generated if not current.get(name)}
    return {name: text for name, text in (new | texts).items() if text != current.get(name)}


def names_only(current: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Ansible's `diff` of a change: the names of the variables, never a value."""
    before = [f"{name}: set" for name in sorted(changes) if name in current]
    after = [
        f"{name}: {'set anew' if name in current else 'set'}"
        for name, value in sorted(changes.items())
        if value is not None
    ]
    return {"before": "".join(f"{line}\n" for line in before), "after": "".join(f"{line}\n" for line in after)}


def _text(value: Any) -> str | None:
    """A value of the inventory as an environment variable has it: yes and no are 1 and 0, null is no variable."""
    if isinstance(value, bool):
        return str(int(value))
    return None if value is None else str(value)
