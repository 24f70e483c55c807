"""Watching what Heroku does: a build, a release with its release phase."""

from __future__ import annotations

import http.client
import time
from typing import Any

from ansible.module_utils.heroku import Heroku, HerokuError
from ansible.module_utils.live import Live

PAUSE = 1.0  # seconds between two looks
# Heroku itself ends a build after 15 minutes; a release phase may take longer.
LIMIT = 3600.0
SILENCE = 90.0  # seconds without output after which the connection counts as dead
NEWEST_FIRST = "version ..; order=desc, max={}"


def releases(api: Heroku, app: str, count: int) -> list[dict[str, Any]]:
    """The last releases, newest first."""
    return api.get(f"/apps/{app}/releases", Range=NEWEST_FIRST.format(count))


def watch(api: Heroku, path: str, live: Live) -> dict[str, Any]:
    """Show the output of a build or release until it is no longer pending; returns its last state.

    Raises HerokuError if that takes more than LIMIT seconds.
    """
    deadline = time.monotonic() + LIMIT
    shown = 0
    while True:
        found = api.get(path)
        came, ended = 0, True
        if url := found.get("output_stream_url"):
            came, ended = _follow(api, url, shown, live)
            shown += came
        if ended and found["status"] == "pending":
            found = api.get(path)
        # A stream that broke off has more to say, unless it breaks off at once.
        if found["status"] != "pending" and (ended or not came):
            return found
        if time.monotonic() > deadline:
            raise HerokuError(f"{path}: still pending after {LIMIT:.0f} s: see the dashboard, then run this again")
        time.sleep(PAUSE)


def settle(api: Heroku, app: str, live: Live) -> None:
    """Wait for the release that a change of the app has made. Raises HerokuError if it failed."""
    newest = releases(api, app, 1)
    if newest and newest[0]["status"] == "pending":
        require_success(watch(api, f"/apps/{app}/releases/{newest[0]['id']}", live))


def require_success(release: dict[str, Any]) -> None:
    """Raise HerokuError if the release failed."""
    if release["status"] != "succeeded":
        raise HerokuError(
            f"release v{release['version']} {release['status']}: the one before goes on running: "
            "the release command's output is above; correct the cause and run this again"
        )


def _follow(api: Heroku, url: str, start: int, live: Live) -> tuple[int, bool]:
    """Show the stream from byte `start` on; returns how many bytes came, and whether it ended or broke off."""
    came = 0
    try:
        for piece in api.stream(url, start, SILENCE):
            came += len(piece)
            live.write(piece.replace(b"\0", b""))  # a NUL says: still alive
    except (OSError, http.client.HTTPException):
        return came, False
    return came, True
