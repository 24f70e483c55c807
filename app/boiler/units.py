"""Sizes and times as a person reads them."""

from __future__ import annotations


def as_size(size: float) -> str:
    """Bytes as mebibytes: `41.3 MB`."""
    return f"{size / 2**20:.1f} MB"


def as_duration(seconds: float) -> str:
    """Seconds in the two largest units: `45s`, `3m 20s`, `2h 5m`, `4d 3h`."""
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{number}{unit}" for number, unit in parts[:2])
