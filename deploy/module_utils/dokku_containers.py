"""The containers of a Dokku app: what each runs, as far as the host tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ansible.module_utils.dokku import Dokku

# `ps:inspect` hides the values of variables, but not of those whose name begins like this.
SETUP = "DOKKU_DEPLOYED_SETUP"


@dataclass(frozen=True)
class Container:
    """One container of the app that the host counts as current."""

    name: str  # web.1
    running: bool
    state: str
    setup: str  # the fingerprint of what it was started with; empty if it is not of ours


def is_deployed(dokku: Dokku, app: str) -> bool:
    """Whether the app has been deployed once."""
    return dokku.report("ps", app)["deployed"] == "true"


def containers(dokku: Dokku, app: str) -> list[Container]:
    """The containers of an app that has been deployed; of another, Dokku can't tell."""
    return [_container(one) for one in dokku.read_plain("ps:inspect", app)]


def _container(one: dict[str, Any]) -> Container:
    environ = dict(entry.split("=", 1) for entry in one["Config"]["Env"])
    state = one["State"]
    shown = f"{state['Status']} with exit code {state['ExitCode']}" if not state["Running"] else state["Status"]
    return Container(environ.get("DYNO", "?"), state["Running"], shown, environ.get(SETUP, ""))
