"""Ansible module: the app runs a commit, with its packages and the settings and numbers that the host has for it.

Arguments: `app`, `host`, `checkout` (folder), `commit` (its id).
The output of the build is shown as it comes. Whether it succeeded is read from what is there afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ansible.module_utils.live import Live
from ansible.module_utils.piku import Piku, PikuError, parse, run_module

ARGUMENTS = {
    "checkout": {"type": "path", "required": True},
    "commit": {"type": "str", "required": True},
}
# One line of what is deployed, then the names of what uWSGI has been told to run, then what is in force.
# pip says whether every locked package is there: Piku runs pip only where requirements.txt is newer than the
# packages' folder, so one that failed is not tried again by itself.
LOOK = """
git rev-parse HEAD
python -m pip install --dry-run --no-index --quiet --require-hashes -r requirements.txt >/dev/null 2>&1 &&
    echo complete || echo incomplete
cd ../../uwsgi-enabled && ls
echo --
cat ../envs/{app}/LIVE_ENV
"""


# What Piku itself puts in force beside the app's settings.
PIKUS_OWN = {"APP", "BIND_ADDRESS", "DATA_ROOT", "HOME", "LOG_ROOT", "NODE_PATH", "PATH", "PORT", "PROC_TYPE", "PWD"}
PIKUS_OWN |= {"USER", "VIRTUAL_ENV"}
PIKUS_PREFIXES = ("ACME_", "NGINX_")


@dataclass(frozen=True)
class Deployed:
    """What the host has deployed: the commit, whether all packages are there, what runs, the settings in force."""

    commit: str
    complete: bool
    processes: frozenset[str]
    settings: dict[str, str]

    @classmethod
    def of(cls, piku: Piku) -> Deployed | None:
        """Look; None if nothing was ever pushed."""
        if piku.app not in piku.apps():
            return None
        head, _, live = piku.run(LOOK.format(app=piku.app)).partition("\n--\n")
        commit, packages, *files = head.splitlines()
        own = {name for name in files if name.startswith(f"{piku.app}_")}
        return cls(commit, packages == "complete", frozenset(own), parse(live))

    def lacks(self, wanted: Deployed) -> list[str]:
        """What is still to be done so that it is as wanted, in words."""
        differ = {
            f"runs {self.commit[:12]}": self.commit != wanted.commit,
            "packages are missing": not self.complete,
            "the processes are others": self.processes != wanted.processes,
            "the settings are not in force": not wanted.settings.items() <= self.settings.items(),
            "removed settings are in force": bool(self.removed(wanted)),
        }
        return [text for text, so in differ.items() if so]

    def removed(self, wanted: Deployed) -> set[str]:
        """The settings in force that are to be no more."""
        found = self.settings.keys() - wanted.settings.keys() - PIKUS_OWN
        return {name for name in found if not name.startswith(PIKUS_PREFIXES)}


def wanted_state(piku: Piku, commit: str) -> Deployed:
    """What the host's files say that there should be."""
    settings = parse(piku.read("ENV"))
    if names := settings.get("NGINX_SERVER_NAME"):
        settings["NGINX_SERVER_NAME"] = " ".join(names.split(","))  # as Piku puts it in force
    numbers = {name: int(number) for name, number in parse(piku.read("SCALING"), ":").items()}
    files = {f"{piku.app}_{name}.{index}.ini" for name, number in numbers.items() for index in range(1, number + 1)}
    return Deployed(commit, True, frozenset(files), settings)


def work(parameters: dict[str, Any], piku: Piku, check: bool) -> dict[str, Any]:
    """Push or deploy unless all is there already."""
    commit = parameters["commit"]
    wanted, before = wanted_state(piku, commit), Deployed.of(piku)
    missing = before.lacks(wanted) if before else ["nothing is deployed"]
    if missing and not check:
        with Live() as live:
            if before and before.removed(wanted):
                piku.stop()  # uWSGI starts itself anew with the environment that it has, and what was removed in it
            release(piku, parameters["checkout"], commit, before, live)
        if still := verdict(piku, wanted):
            raise PikuError(f"{piku.host}: {piku.app} after the release: {', '.join(still)}: the reason is above")
    diff = {"before": "".join(f"{line}\n" for line in missing), "after": f"{commit}\n" if missing else ""}
    return {"changed": bool(missing), "diff": diff}


def release(piku: Piku, checkout: str, commit: str, before: Deployed | None, live: Live) -> None:
    """One deployment, by a push if that brings something new. Raises PikuError if it says that it failed."""
    if before and not before.complete:
        piku.run("touch requirements.txt")
    if not before or before.commit != commit:
        failures = piku.push(checkout, commit, live)
        after = Deployed.of(piku)
        if not after:
            raise PikuError(f"{piku.host}: the push did not arrive: {'; '.join(failures) or 'see above'}")
        if failures or after.commit == commit:
            fail_for(piku, failures)
            return
        # The host had it on this branch already, so the push did nothing: an older commit, or another branch's turn.
        piku.run(f"git fetch --quiet && git reset --quiet --hard {commit}")
    fail_for(piku, piku.deploy(live))


def fail_for(piku: Piku, failures: list[str]) -> None:
    if failures:
        raise PikuError(f"{piku.host}: {piku.app} was not released well: {'; '.join(failures[:3])}")


def verdict(piku: Piku, wanted: Deployed) -> list[str]:
    after = Deployed.of(piku)
    return after.lacks(wanted) if after else ["nothing is deployed"]


if __name__ == "__main__":
    run_module(ARGUMENTS, work)
