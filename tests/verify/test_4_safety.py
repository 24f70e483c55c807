"""Memory, secrets, and what a deployment must not have."""

from __future__ import annotations

import pytest

from boiler.units import as_size
from tests.verify.report import fail
from tests.verify.target import Seen
from tests.verify.test_2_web import views

ROOM = 0.9  # of the limit: what is above is no room


@pytest.mark.inside
def test_memory_has_room(seen: Seen) -> None:
    """The memory is under the limit, with room."""
    memory = seen.inside["memory"]
    if memory and memory["used"] > ROOM * memory["limit"]:
        fail(
            f"{as_size(memory['used'])} of {as_size(memory['limit'])} are used, less than a tenth is free: "
            "lower WEB_CONCURRENCY or WORKER_CONCURRENCY, or take a larger dyno"
        )


@pytest.mark.inside
def test_one_secret_key(seen: Seen) -> None:
    """All processes of all dynos have the same secret key."""
    others = {
        fingerprint: name
        for name, fingerprint in seen.inside["database"].get("fingerprints", ())
        if fingerprint != seen.inside["fingerprint"]
    }
    if others:
        fail(
            f"another dyno on this database ({', '.join(sorted(set(others.values())))}) has another DJANGO_SECRET_KEY: "
            "set the same for all, once, with the deployment's settings"
        )


@pytest.mark.inside
def test_no_secret_in_a_command_line(seen: Seen) -> None:
    """No process shows a secret in its command line."""
    for leak in seen.inside["leaks"]:
        fail(
            f"pid {leak['pid']} ({leak['program']}) shows {leak['setting']} to everybody who can type `ps`: "
            "give it the variable, not its value; then change the value"
        )


@pytest.mark.deployment
def test_debug_is_off_and_cookies_are_secure(seen: Seen) -> None:
    """DEBUG is off, and cookies travel over https alone."""
    settings = seen.inside.get("settings", {})
    if settings.get("debug") or any(view["debug_page"] for view in views(seen)):
        fail("DEBUG is on, visitors see code and settings: set DJANGO_DEBUG=0")
    if seen.outside and seen.outside["url"].startswith("http://"):
        return  # whoever gives such an address has no https, and no cookie could be secure
    if settings and not settings["https"]:
        fail("DJANGO_HTTPS=0, so cookies travel in the open: get a certificate and unset it, or give URL=http://…")
    if settings and not settings["secure_cookies"]:
        fail("cookies are not secure: see SESSION_COOKIE_SECURE and CSRF_COOKIE_SECURE in app/config/settings.py")
    for view in views(seen):
        if view["open_cookies"]:
            fail(f"{view['url']} sets the cookie {view['open_cookies'][0]} without Secure: set it with secure=True")
