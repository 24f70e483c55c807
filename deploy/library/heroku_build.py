"""Ansible module: the app runs a commit; if not, Heroku builds and releases it.

Arguments: `app`, `checkout` (folder), `commit` (its id).
The build's and the release phase's output is shown as it comes. When either fails, the release before runs on.
"""

from __future__ import annotations

import hashlib
from typing import Any

from ansible.module_utils.checkout import Checkout, CheckoutError
from ansible.module_utils.heroku import Heroku, HerokuError, read, run_module
from ansible.module_utils.heroku_releases import releases, require_success, watch
from ansible.module_utils.live import Live

ARGUMENTS = {
    "app": {"type": "str", "required": True},
    "checkout": {"type": "path", "required": True},
    "commit": {"type": "str", "required": True},
}

NEWEST_FIRST = "created_at ..; order=desc, max=200"


def work(parameters: dict[str, Any], api: Heroku, check: bool) -> dict[str, Any]:
    """Build the commit unless it runs already; a build of it that is under way is waited for."""
    app, commit = parameters["app"], parameters["commit"]
    builds = read(api, f"/apps/{app}/builds", check=check, otherwise=[], Range=NEWEST_FIRST)
    running = commit_of(current_slug(api, app) if builds else "", builds)
    if running == commit:
        return {"changed": False}
    if not check:
        under_way = [one for one in builds if one["status"] == "pending" and version(one) == commit]
        with Live() as live:
            build = under_way[0] if under_way else start_build(api, app, Checkout(parameters["checkout"]), commit)
            see_through(api, app, build, live)
    before = f"{running}\n" if running else ""
    return {"changed": True, "diff": {"before": before, "after": f"{commit}\n"}}


def current_slug(api: Heroku, app: str) -> str:
    """The id of the slug that runs; empty if nothing was ever released."""
    for release in releases(api, app, 200):
        if release.get("current"):
            return (release["slug"] or {}).get("id", "")
    return ""


def version(build: dict[str, Any]) -> str:
    return (build.get("source_blob") or {}).get("version") or ""


def commit_of(slug: str, builds: list[dict[str, Any]]) -> str:
    """The commit that a slug was built from; empty if no build tells."""
    return next((version(one) for one in builds if slug and (one.get("slug") or {}).get("id") == slug), "")


def start_build(api: Heroku, app: str, checkout: Checkout, commit: str) -> dict[str, Any]:
    """Upload the commit's files and have them built."""
    try:
        archive = checkout.archive(commit)
    except CheckoutError as error:
        raise HerokuError(str(error)) from None
    source = api.post(f"/apps/{app}/sources")["source_blob"]
    api.upload(source["put_url"], archive)
    checksum = f"SHA256:{hashlib.sha256(archive).hexdigest()}"
    blob = {"url": source["get_url"], "version": commit, "checksum": checksum}
    return api.post(f"/apps/{app}/builds", {"source_blob": blob})


def see_through(api: Heroku, app: str, build: dict[str, Any], live: Live) -> None:
    """Wait until the build is released. Raises HerokuError if it or its release fails."""
    build = watch(api, f"/apps/{app}/builds/{build['id']}", live)
    if build["status"] != "succeeded":
        raise HerokuError(f"the build {build['status']}: the release before goes on running: the reason is above")
    if release := build.get("release"):
        live.line("the release phase:")
        require_success(watch(api, f"/apps/{app}/releases/{release['id']}", live))


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
