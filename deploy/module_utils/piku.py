"""A Piku host, as the modules piku_… speak with it: over ssh, where Piku's own command is all that answers.

Piku says little about what became of a command: `run` and `git push` end with 0 whatever happens, and nothing comes
as JSON. So nothing here believes an exit code alone: what has to be so afterwards is read anew.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.live import Live

# A connection that is dead is noticed within 10 s at its start and 60 s later on. No question is ever asked.
OPTIONS = (
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=10",
    "-o",
    "ServerAliveInterval=15",
    "-o",
    "ServerAliveCountMax=4",
)
SSH_FAILED = 255  # ssh's exit code for an error of its own
TIMEOUT = 300  # seconds for a command that builds nothing; a small host that starts an app at the same time is slow
PAUSE = 1.0  # seconds between two looks at what still runs
EXIT = "piku-exit="  # goes before the exit code of what `run` has run
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
# How Piku and pip say that something failed, while git and Piku end with 0.
FAILURE = re.compile(r"^(Error|ERROR|error|fatal): |Exiting due to")
# Lines of a build that tell nothing: pip's list of packages, openssl's dots.
NOISE = re.compile(r"^ *(Requirement already|Ignoring|Collecting|Downloading|Using cached|━)|^[-.+*\s]*$")

ARGUMENTS: dict[str, Any] = {
    "app": {"type": "str", "required": True},
    "host": {"type": "str", "required": True},
}


class PikuError(Exception):
    """What can't be done on the host; the message is one line: what is wrong, where, what to do."""


class Piku:
    """One app on one host. `host` is what ssh takes; the account is piku unless it names another.

    Ports, keys and jump hosts are in ssh's own configuration.
    """

    def __init__(self, app: str, host: str) -> None:
        if not NAME.fullmatch(app):
            raise PikuError(f"app: {app}: small letters, digits and dashes only, and no dash at the start")
        if not host:
            raise PikuError("no host: HOST=example.com on make's command line, or `host` in deploy/inventory.yml")
        if not re.fullmatch(r"[\w.:@\[\]-]+", host) or host.startswith("-"):
            raise PikuError(f"HOST: {host!r}: must be a host's name or address, such as example.com")
        self.app = app
        self.host = host if "@" in host else f"piku@{host}"

    def call(self, *words: str) -> str:
        """One of Piku's commands; returns what it prints. Raises PikuError if it fails."""
        done = self._start(["ssh", *OPTIONS, self.host, *words])
        if done.returncode or FAILURE.search(done.stdout):
            raise PikuError(f"{self.host}: piku {' '.join(words)}: {_last_line(done.stdout + done.stderr)}")
        return done.stdout

    def run(self, script: str) -> str:
        """What a shell script prints that runs in the app's folder, with its packages. Raises PikuError if it fails.

        It goes in by stdin: words of a command line would be split and expanded twice on their way.
        """
        # Without `cat`, Piku loses what comes faster than ssh takes it.
        command = ["ssh", *OPTIONS, self.host, "run", self.app, "--", "sh -s | cat"]
        done = self._start(command, f"(\n{script}\n) 2>&1\necho {EXIT}$?\n")
        output, mark, code = done.stdout.rpartition(EXIT)
        if not mark:
            raise PikuError(f"{self.host}: piku run {self.app}: {_last_line(done.stdout + done.stderr)}")
        if code.strip() != "0":
            raise PikuError(f"{self.host}: {_last_line(output)}: exit code {code.strip()}")
        return output

    def apps(self) -> list[str]:
        """The names of all apps on the host."""
        listed = self.call("apps")
        return [] if listed.startswith("There are no") else [line.strip("* \n") for line in listed.splitlines()]

    def refuse_neighbours(self) -> None:
        """Raise PikuError if this app and another one would take each other's processes away.

        Piku removes `APP*` whenever it restarts APP, so it stops every app whose name begins the same.
        """
        for other in self.apps():
            if other != self.app and (other.startswith(self.app) or self.app.startswith(other)):
                raise PikuError(
                    f"{self.host} has an app {other}: each restart of "
                    f"{min(self.app, other, key=len)} would stop {max(self.app, other, key=len)}, because Piku takes "
                    "the one name for the beginning of the other: use another APP"
                )

    def read(self, name: str) -> str:
        """A file of the app's settings (ENV, SCALING); empty if there is none yet."""
        with tempfile.TemporaryDirectory(prefix="piku-") as folder:
            source = f"{self.host}:../envs/{self.app}/{name}"
            done = self._start(["scp", "-O", "-q", *OPTIONS, source, folder])
            if done.returncode == 0:
                return (Path(folder) / name).read_text(encoding="utf-8")
        if "No such file" in done.stderr:
            return ""
        raise PikuError(f"{source}: {_last_line(done.stderr)}")

    def write(self, name: str, text: str) -> None:
        """Replace a file of the app's settings, which also works before the app's first push.

        Piku's own `config:set` has the values in its command line, restarts the app every time, and can't be used
        before the first push. The file is readable by its owner only.
        """
        with tempfile.TemporaryDirectory(prefix="piku-") as folder:
            path = Path(folder) / self.app / name
            path.parent.mkdir()
            path.touch(mode=0o600)
            path.write_text(text, encoding="utf-8")
            # The folder goes with it: before the first push there is none.
            command = ["scp", "-O", "-q", "-r", *OPTIONS, str(path.parent), f"{self.host}:../envs/"]
            done = self._start(command)
        if done.returncode or self.read(name) != text:
            raise PikuError(f"{self.host}: {name} of {self.app} could not be written: {_last_line(done.stderr)}")

    def stop(self, wait: int = 60) -> None:
        """Stop the app, and wait until its jobs are done and its uWSGI is gone; raises PikuError after `wait` s."""
        try:
            self.call("stop", self.app)
        except PikuError as error:
            if "not deployed" not in str(error):  # it was stopped before
                raise
        deadline = time.monotonic() + wait
        while self.run(f"grep -lsa '^{self.app}:.*uWSGI' /proc/[0-9]*/cmdline; true").strip():
            if time.monotonic() > deadline:
                raise PikuError(f"{self.host}: {self.app} still runs {wait} s after `piku stop`: look into its log")
            time.sleep(PAUSE)

    def push(self, checkout: str, commit: str, live: Live) -> list[str]:
        """Push a commit, which deploys it unless the host had it already; returns the lines that tell of failures."""
        ssh = shlex.join(["ssh", *OPTIONS])
        command = ["git", "-C", checkout, "push", "--force", f"{self.host}:{self.app}", f"{commit}:refs/heads/main"]
        return self._watch(command, live, {**os.environ, "GIT_SSH_COMMAND": ssh})

    def deploy(self, live: Live) -> list[str]:
        """Deploy what was pushed last once more; returns the lines that tell of failures."""
        return self._watch(["ssh", *OPTIONS, self.host, "deploy", self.app], live, dict(os.environ))

    def _watch(self, command: list[str], live: Live, environ: dict[str, str]) -> list[str]:
        """Run a command that builds, and show what it prints."""
        failures = []
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT, env=environ, text=True
        ) as process:
            last = ""
            for text in process.stdout or ():
                line = last = text.removeprefix("remote: ").rstrip()  # git marks what the host printed
                if FAILURE.search(line):
                    failures.append(line)
                if not NOISE.search(line):
                    live.line(line)
        if process.returncode and not failures:
            failures.append(last or f"{command[0]} ended with {process.returncode}")
        return failures

    def _start(self, command: list[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
        try:
            done = subprocess.run(
                command, input=stdin, capture_output=True, text=True, timeout=TIMEOUT, errors="replace", check=False
            )
        except subprocess.TimeoutExpired:
            raise PikuError(f"{self.host}: no answer within {TIMEOUT} s: run this again later") from None
        except FileNotFoundError:
            raise PikuError(f"there is no {command[0]} on PATH: install OpenSSH's client") from None
        if done.returncode == SSH_FAILED:
            raise PikuError(
                f"{self.host}: ssh: {_last_line(done.stderr)}: check HOST, and that Piku has your key "
                "(`piku setup:ssh` on the host)"
            )
        return done


def run_module(arguments: dict[str, Any], work: Callable[[dict[str, Any], Piku, bool], dict[str, Any]]) -> None:
    """Be an Ansible module: `work(parameters, piku, check)` returns the result; its errors end in one line."""
    module = AnsibleModule({**ARGUMENTS, **arguments}, supports_check_mode=True)
    parameters = module.params
    try:
        piku = Piku(parameters["app"], parameters["host"])
        module.exit_json(**work(parameters, piku, module.check_mode))
    except PikuError as error:
        module.fail_json(msg=str(error))


def parse(text: str, separator: str = "=") -> dict[str, str]:
    """The settings of a file as Piku reads it: `name=value` lines, `#` before a comment."""
    pairs = (line.split(separator, 1) for line in text.splitlines() if separator in line and line[0] != "#")
    return {name.strip(): value.strip() for name, value in pairs}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
