"""A client of a Dokku host: its commands over SSH as the user dokku, for the modules dokku_….

Port, jump host, key and everything else about the connection come from ssh's own configuration (~/.ssh/config),
and so does the rule that the host's key must be known. What ssh runs there splits its one line into words by
`xargs`, so words are quoted for that; a newline can't get through, and short options are swallowed: long ones only.
Secrets go by stdin, never in a command.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.live import Live

NO_SUCH_APP = 20  # Dokku's exit code
SSH_FAILED = 255  # ssh's own
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
MARKED = re.compile(r" *! +(?!\[)")  # " !     …"; git's " ! [remote rejected]" is none
TIMEOUT = 120  # seconds for a command that only reads or notes something
AT_ONCE = 6  # commands over one connection; sshd allows ten
KEPT = 60  # seconds that the connection is kept for the next module


class DokkuError(Exception):
    """A command that failed; the message is one line: what is wrong, where, what to do."""


def ssh_command() -> list[str]:
    """ssh that never asks, with one connection that all modules use one after the other."""
    folder = Path.home() / ".ansible" / "cp"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    shared = ["-o", "ControlMaster=auto", "-o", f"ControlPath={folder}/%C", "-o", f"ControlPersist={KEPT}"]
    return ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15", *shared]


class Dokku:
    """Runs Dokku's commands on one host."""

    def __init__(self, host: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", host):
            raise DokkuError(
                f"HOST={host}: must be the name or address of a Dokku host alone: "
                "user, port and jump host belong into ~/.ssh/config"
            )
        self.host = host
        self._plugins: set[str] = set()

    def ask(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command, whatever its exit code. Raises DokkuError if the host can't be reached."""
        command = [*ssh_command(), f"dokku@{self.host}", "--", one_line(words)]
        try:
            done = subprocess.run(
                command,
                input=stdin,
                stdin=None if stdin is not None else subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DokkuError(f"{self.host}: no answer to `{words[0]}` within {TIMEOUT} s: run this again") from None
        self._require_connection(done.returncode, done.stderr)
        return done

    def run(self, *words: str, stdin: str | None = None) -> str:
        """Run a command; returns what it prints. Raises DokkuError with its last line if it fails."""
        done = self.ask(*words, stdin=stdin)
        if done.returncode:
            raise DokkuError(f"{self.host}: `dokku {words[0]}`: {last_words(done.stdout + done.stderr)}")
        return done.stdout

    def read(self, *words: str) -> Any:
        """The JSON that a command answers when asked for it."""
        return self.read_plain(*words, "--format", "json")

    def read_plain(self, *words: str) -> Any:
        """The JSON that a command answers by itself."""
        text = self.run(*words)
        try:
            return json.loads(text)
        except ValueError:
            raise DokkuError(f"{self.host}: `dokku {words[0]}` gave no JSON: Dokku 0.38 or later is needed") from None

    def report(self, plugin: str, app: str) -> dict[str, Any]:
        """The properties that `plugin:report` knows of the app."""
        return self.read(f"{plugin}:report", app)

    def reports(self, plugins: Iterable[str], app: str) -> dict[str, dict[str, Any]]:
        """The reports of several plugins, asked for side by side: each takes a quarter of a second."""
        names = list(plugins)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return dict(zip(names, pool.map(lambda name: self.report(name, app), names), strict=True))

    def exists(self, app: str) -> bool:
        """Whether the app is there."""
        done = self.ask("apps:exists", app)
        if done.returncode not in (0, NO_SUCH_APP):
            raise DokkuError(f"{self.host}: `dokku apps:exists`: {last_words(done.stdout + done.stderr)}")
        return done.returncode == 0

    def has_plugin(self, name: str) -> bool:
        """Whether the host has the plugin, and it is enabled."""
        if not self._plugins:
            rows = [line.split() for line in self.run("plugin:list").splitlines()]
            self._plugins = {row[0] for row in rows if len(row) > 2 and row[2] == "enabled"}
        return name in self._plugins

    def call(self, command: list[str], **environ: str) -> str:
        """Run a command of this machine; returns what it prints. Raises DokkuError if it fails."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, **environ},
            check=False,
        )
        if done.returncode:
            raise DokkuError(f"`{' '.join(command[:1] + command[3:5])}`: {last_words(done.stdout + done.stderr)}")
        return done.stdout

    def watch(self, command: list[str], live: Live, **environ: str) -> list[str]:
        """Run a long command of this machine with its output shown as it comes; returns the output's lines.

        Raises DokkuError if it fails, with the last line of what it printed.
        """
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **environ},
        )
        lines = []
        with process:
            for line in process.stdout or ():
                shown = plain(line)
                if shown:
                    lines.append(shown)
                    live.line(shown)
        self._require_connection(process.returncode, "\n".join(lines[-3:]))
        if process.returncode:
            raise DokkuError(f"{self.host}: {last_words(chr(10).join(lines))}")
        return lines

    def run_live(self, live: Live, *words: str) -> list[str]:
        """Run a Dokku command that takes long, its output shown."""
        return self.watch([*ssh_command(), f"dokku@{self.host}", "--", one_line(words)], live)

    def _require_connection(self, code: int, output: str) -> None:
        if code == SSH_FAILED:
            raise DokkuError(
                f"ssh dokku@{self.host}: {last_words(output)}: type `ssh dokku@{self.host} version` to see why "
                "(a new host's key has to be accepted once; your own has to be added there by `dokku ssh-keys:add`)"
            )


def one_line(words: tuple[str, ...]) -> str:
    """The words as the host's xargs splits them again. Raises DokkuError if one has a line break."""
    for word in words:
        if "\n" in word or "\r" in word:
            raise DokkuError(f"{words[0]}: a value with a line break can't be sent to Dokku: {word.splitlines()[0]} …")
    return shlex.join(words)


def plain(line: str) -> str:
    """A line of Dokku's or git's output without colours, git's `remote:` and the leftovers of progress."""
    text = COLOURS.sub("", line).rstrip().rpartition("\r")[2]
    return text.removeprefix("remote: ").removeprefix("remote:").rstrip()


def last_words(output: str) -> str:
    """The last line that Dokku has marked as an error, else the last that says something."""
    lines = [line for line in map(plain, output.splitlines()) if line.strip()]
    marked = [line for line in lines if MARKED.match(line)]
    return (marked or lines or ["no reason given"])[-1].strip(" !").rstrip(".")


def run_module(arguments: dict[str, Any], work: Callable[[dict[str, Any], Dokku, bool], dict[str, Any]]) -> None:
    """Be an Ansible module: `work(parameters, dokku, check)` returns the result; its errors end in one line."""
    common = {"host": {"type": "str", "required": True}, "app": {"type": "str", "required": True}}
    module = AnsibleModule({**common, **arguments}, supports_check_mode=True)
    try:
        module.exit_json(**work(module.params, Dokku(module.params["host"]), module.check_mode))
    except DokkuError as error:
        module.fail_json(msg=str(error))


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    """Ansible's `diff` of what differs between two states, one line a name; an empty value is no line."""
    names = sorted(name for name in before | after if before.get(name) != after.get(name))
    return {
        "before": "".join(f"{name}: {before[name]}\n" for name in names if before.get(name)),
        "after": "".join(f"{name}: {after[name]}\n" for name in names if after.get(name)),
    }
