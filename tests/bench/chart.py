"""The comparison as a chart: SVG that reads well on a light and on a dark page."""

from __future__ import annotations

import math
from statistics import median
from typing import Any
from xml.sax.saxutils import escape

# Figure, title, unit, whether less is better.
PANELS = (
    ("done_per_s", "Jobs from AJAX to done", "jobs/s", False),
    ("hello_p99_ms", "Hello, 99th percentile", "ms", True),
    ("idle_pss_mb", "Idle memory", "MB", True),
    ("job_start_ms", "AJAX to the job's start", "ms", True),
)
WIDTH, BAR, GAP, LEFT, RIGHT = 760, 18, 8, 130, 90
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #2c2420; }
.title { font-weight: 600; font-size: 15px; }
.note { fill: #70635a; font-size: 11px; }
.bar { fill: #c9b8a5; }
.ours { fill: #a4501f; }
.spread { stroke: #2c2420; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
  text { fill: #f1e8dd; }
  .note { fill: #b2a497; }
  .bar { fill: #5f5348; }
  .ours { fill: #e2935d; }
  .spread { stroke: #f1e8dd; }
}
"""


def draw(results: dict[str, list[dict[str, Any]]], made: str) -> str:
    """Bars of the medians for some figures, with the lowest and highest round as a line over each."""
    parts: list[str] = []
    top = 10
    for figure, title, unit, less in PANELS:
        rows = {
            name: values
            for name, runs in results.items()
            if (values := [run["figures"][figure] for run in runs if figure in run["figures"]])
        }
        if rows:
            panel, height = _panel(rows, f"{title}, {unit}", "less is better" if less else "more is better", top)
            parts += panel
            top += height + 24
    words = "".join(
        f'<text class="note" x="0" y="{top + 14 * number}">{escape(line)}</text>'
        for number, line in enumerate(made.split("; "))
    )
    height = top + 14 * len(made.split("; "))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
        f"<title>Layouts compared</title><style>{STYLE}</style>{''.join(parts)}{words}</svg>\n"
    )


def _panel(rows: dict[str, list[float]], title: str, note: str, top: float) -> tuple[list[str], float]:
    """The bars of one figure from `top` on, and how high they are."""
    most = max(max(values) for values in rows.values()) or 1
    scale = (WIDTH - LEFT - RIGHT) / most
    parts = [
        f'<text class="title" x="0" y="{top + 14}">{escape(title)}</text>',
        f'<text class="note" x="{WIDTH}" y="{top + 14}" text-anchor="end">{note}</text>',
    ]
    y = top + 26
    for name, values in rows.items():
        value, low, high = median(values), min(values), max(values)
        kind = "bar ours" if name.startswith("boiler") else "bar"
        middle = y + BAR / 2
        parts += [
            f'<text x="{LEFT - 8}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{value * scale:.1f}" height="{BAR}" rx="3"/>',
            f'<line class="spread" x1="{LEFT + low * scale:.1f}" x2="{LEFT + high * scale:.1f}" '
            f'y1="{middle}" y2="{middle}"/>',
            f'<text x="{LEFT + high * scale + 6:.1f}" y="{middle + 4}">{_number(value)}</text>',
        ]
        y += BAR + GAP
    return parts, y - top


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == math.floor(value) else f"{value:.1f}"
