"""How the page writes amounts; static/demo/page.js writes them in the same way."""

from __future__ import annotations

from datetime import timedelta

from django import template

register = template.Library()

NOTHING = (None, "")  # Django hands a filter "" for what there is not

UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


@register.filter
def duration(amount: float | timedelta | None) -> str:
    """Seconds as `250 ms`, `1.5 s`, `3 min 20 s`, `2 d 4 h` and a dash for None."""
    if amount in NOTHING:
        return "—"
    seconds = amount.total_seconds() if isinstance(amount, timedelta) else amount
    for size, unit, part_size, part in UNITS:
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} {seconds % size // part_size:.0f} {part}"
    return f"{seconds * 1000:.0f} ms" if 0 < seconds < 1 else f"{round(seconds, 1):g} s"


@register.filter
def megabytes(amount: int | None) -> str:
    """Bytes in whole megabytes of 1024² bytes, as dynos are sold: `48 MB` and a dash for None."""
    return "—" if amount in NOTHING else f"{amount / 1024**2:.0f} MB"


@register.filter
def plain(amount: float | timedelta | None) -> str:
    """A number for the script to read; seconds of a timedelta, nothing for None."""
    if amount in NOTHING:
        return ""
    return repr(amount.total_seconds() if isinstance(amount, timedelta) else amount)
