"""Ways into a running dyno for testinfra, beside its own local, docker and ssh.

What each client does to a command and to its answer is named in the docstrings; where it is not marked as seen on
the real platform, it was read in the client's source.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
import subprocess
from typing import Any

from testinfra.backend.base import BaseBackend, CommandResult

TIMEOUT = 120  # seconds for one command, the way there and back included
BEGIN, MIDDLE, END = "--- verify: output", "--- verify: errors", "--- verify: exit code"


class UnreachableError(RuntimeError):
    """The target does not carry out commands; the message is one line."""


class ClientBackend(BaseBackend):
    """A backend that runs a client program on this machine."""

    def client(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Run the client, without input. Raises UnreachableError if it is not installed or does not come back."""
        try:
            return subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, env=os.environ, check=False
            )
        except FileNotFoundError:
            raise UnreachableError(f"there is no `{words[0]}` on PATH: install it") from None
        except subprocess.TimeoutExpired:
            raise UnreachableError(f"`{words[0]}` gave no answer within {TIMEOUT} s") from None

    def answer(self, code: int, command: str, output: bytes, errors: bytes) -> CommandResult:
        """The command's result, as text: testinfra would ask the target for its encoding."""
        return self.result(code, command.encode(), output.decode(errors="replace"), errors.decode(errors="replace"))


class MarkedBackend(ClientBackend):
    """A client that mixes its own lines into the output, or loses the exit code.

    The command travels in base64, so no quoting on the way matters; the answer comes back between marks, in
    base64 too, so that terminals' line ends don't matter, with the exit code behind it.
    """

    def carry(self, script: str) -> subprocess.CompletedProcess[bytes]:
        """Have the target's shell run `script`, one line of shell."""
        raise NotImplementedError

    def run(self, command: str, *args: str, **_: Any) -> CommandResult:
        """Run a command. Raises UnreachableError with the client's last line if it was not carried out."""
        command = self.get_command(command, *args)
        wrapped = (
            f"o=$(mktemp) && e=$(mktemp) && {{ ( {command}\n) >$o 2>$e </dev/null; r=$?; "
            f"echo '{BEGIN}'; base64 <$o; echo '{MIDDLE}'; base64 <$e; echo '{END}' $r; rm -f $o $e; }}"
        )
        done = self.carry(f"echo {base64.b64encode(wrapped.encode()).decode()} | base64 -d | sh | cat")
        marked = re.search(f"{BEGIN}(.*){MIDDLE}(.*){END} (\\d+)".encode(), done.stdout, re.DOTALL)
        if not marked:
            raise UnreachableError(last_line(done))
        output, errors, code = marked.groups()
        return self.answer(int(code), command, base64.b64decode(output), base64.b64decode(errors))


class HerokuBackend(MarkedBackend):
    """`heroku ps:exec`.

    It runs the command on a terminal, which merges errors into the output and ends lines with CR LF, prints
    banners, and exits with 0 whatever the command's exit code. One word after `--` reaches the shell as it is.
    That shell has none of the app's config vars.
    """

    NAME = "heroku"

    def __init__(self, app: str, dyno: str = "web.1") -> None:
        self.app, self.dyno = app, dyno
        super().__init__(f"{app}/{dyno}")

    def carry(self, script: str) -> subprocess.CompletedProcess[bytes]:
        """The dyno's shell runs it, in the app's folder."""
        return self.client("heroku", "ps:exec", "--app", self.app, "--dyno", self.dyno, "--", f"cd ~ && {script}")


class PikuBackend(MarkedBackend):
    """Piku's `run` through ssh.

    Seen: its exit code is always 0; the words are taken apart at blanks, quotes and all, and joined again for a
    shell; output past some 12,000 lines is lost unless it goes through `cat`.
    """

    NAME = "piku"

    def __init__(self, host: str, app: str) -> None:
        self.host, self.app = host, app
        super().__init__(f"{host}/{app}")

    def carry(self, script: str) -> subprocess.CompletedProcess[bytes]:
        """The server's shell runs it, in the app's folder and environment."""
        return self.client(*ssh(self.host), f"run {self.app} -- {script}")


class DokkuBackend(ClientBackend):
    """`dokku enter` through ssh.

    Seen: it returns the command's own exit code; no shell runs on the way, so the words go as one quoted string.
    In herokuish's containers `eval` looks at each word once more, and in none is there a shell for operators:
    plain words only.
    """

    NAME = "dokku"
    PLAIN = re.compile(r"[\w./:=@%+,-]+")

    def __init__(self, host: str, app: str) -> None:
        self.host, self.app = host, app
        super().__init__(f"{host}/{app}")

    def run(self, command: str, *args: str, **_: Any) -> CommandResult:
        """Run a command of plain words. Raises ValueError for others, UnreachableError if dokku refuses."""
        words = shlex.split(self.get_command(command, *args))
        if not all(self.PLAIN.fullmatch(word) for word in words):
            raise ValueError(f"dokku enter takes plain words only, not {command!r}")
        done = self.client(*ssh(self.host), shlex.join(["enter", self.app, "web", *words]))
        if done.returncode == 255 or done.stderr.lstrip().startswith(b"!"):  # ssh's own code; dokku's refusal
            raise UnreachableError(last_line(done))
        return self.answer(done.returncode, command, done.stdout, done.stderr)


def ssh(host: str) -> list[str]:
    """The words that lead to a host, `USER@HOST` or `USER@HOST:PORT`; it never asks for anything."""
    name, _, port = host.partition(":")
    words = ["ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
    return [*words, "-p", port, name] if port else [*words, name]


def last_line(done: subprocess.CompletedProcess[bytes]) -> str:
    """What the client said last: its errors first, which are why it failed."""
    for stream in (done.stderr, done.stdout):
        lines = [line.strip() for line in stream.decode(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1]
    return f"no answer (exit code {done.returncode})"
