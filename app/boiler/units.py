"""Sizes and times as a person reads them."""

from __future__ import annotations

import re

MB = 1 << 20
SIZE = re.compile(r"(\d+(?:\.\d+)?) *([kmg]?)i?b?", re.IGNORECASE)


def size(text: str) -> int:
    """Bytes of `512m`, `512MB`, `0.5 GiB`, `1000`; in powers of 1,024. Raises ValueError."""
    match = SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size like 512m or 1g")
    return int(float(match[1]) * {"": 1, "k": 1 << 10, "m": MB, "g": 1 << 30}[match[2].lower()])


def as_size(amount: float) -> str:
    """Bytes as mebibytes: `41.3 MB`."""
    return f"{amount / MB:.1f} MB"


def as_duration(seconds: float) -> str:
    """Seconds in the two largest units: `45s`, `3m 20s`, `2h 5m`, `4d 3h`."""
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{number}{unit}" for number, unit in parts[:2])
