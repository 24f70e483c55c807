"""The web: what listens, and what a visitor gets."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

import pytest

from tests.verify.report import fail, listed
from tests.verify.target import Seen


def views(seen: Seen) -> list[Mapping[str, Any]]:
    """What was seen from inside the dyno and from outside, each with its address."""
    return [view for view in (seen.inside.get("web"), seen.outside) if view]


@pytest.mark.inside
def test_gunicorn_listens(seen: Seen) -> None:
    """gunicorn listens on $PORT."""
    port = seen.inside["port"]
    webs = [one["name"] for one in seen.inside["plan"] if one["kind"] == "gunicorn"]
    owners = [row for row in seen.inside["listening"] if row["port"] == port]
    if webs and not any(set(row["names"]) & set(webs) for row in owners):
        who = f"{', '.join(owners[0]['names'])} does" if owners else "nothing does"
        fail(f"gunicorn does not listen on PORT={port}, {who}: see `bind` in app/config/gunicorn.py and the dyno's log")


@pytest.mark.inside
def test_nothing_else_listens_outside(seen: Seen) -> None:
    """Nothing else listens on an address that others can reach."""
    wrong = [
        row
        for row in seen.inside["listening"]
        if row["port"] != seen.inside["port"] and not ipaddress.ip_address(row["address"]).is_loopback
    ]
    for row in wrong:
        fail(
            f"{', '.join(row['names'])} ({listed(row['pids'])}) listens on {row['address']}:{row['port']}: "
            "bind it to 127.0.0.1"
        )


def test_the_page_answers(seen: Seen) -> None:
    """The page answers."""
    for view in views(seen):
        page, address = view["page"], f"{view['url']}{view['page']['path']}"
        if not page["status"]:
            fail(f"{address} does not answer: {page['error']}: see the log of web")
        if page["status"] == 400:
            fail(f"{address} answers 400: put its host name into DJANGO_ALLOWED_HOSTS")
        if page["status"] == 404:
            fail(f"{address} answers 404: name a path that your app answers, PAGE=/path")
        if page["status"] >= 400 and page["status"] not in (401, 403):
            fail(f"{address} answers {page['status']}: see the log of web")


def test_healthz_answers(seen: Seen) -> None:
    """/healthz answers that all is well."""
    for view in views(seen):
        health = view["health"]
        if not health["status"]:
            fail(f"{view['url']}/healthz does not answer: {health['error']}: see the log of web")
        if health["status"] != 200:
            reasons = " ".join(health["reasons"]) or "see the log of web"
            fail(f"{view['url']}/healthz answers {health['status']}: {reasons}")
