"""`make dokku CMD="ps:report"`: dokku-toolbelt for what it does well, and the ssh command to type for the rest.

dokku-toolbelt (the command `dt`) finds host and app by the git remote, which a deployment has left. Version 1.1.3
mangles other things, and ends with exit code 0 whatever happened, so what it would mangle is not given to it:

- an option before `--` loses a dash and its value, and a number is written anew (`007` becomes `7`);
- a value with spaces is split, and quotes are the host's to read a second time;
- a command that reads stdin waits for ever, and there is no terminal for `enter` and `run` without a command;
- its list of commands that are about no app is old: it puts the app's name into the others.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parent / "node_modules" / ".bin" / "dt"
REMOTE = re.compile(r"dokku@([^:/\s]+):(\S+)")

READS_STDIN = re.compile(r"(certs:(add|update)|config:import|git:(from-archive|load-image)|ssh-keys:add|.*:import)$")
INTERACTIVE = ("enter", "run", "shell")
# About no app: what dt knows of these, and what it does not; the services' own are about a service.
KNOWN_GLOBAL = ("apps:create", "apps:list", "help", "version")
GONE = re.compile(r"(apps|backup:(export|import)|plugins(-install|-update)?|ps:(rebuildall|restartall))$")
GLOBAL = re.compile(
    r"(plugin|ssh-keys|events|trace|network:(create|destroy|exists|info|list)|storage:ensure-directory"
    r"|(elasticsearch|mariadb|memcached|mongo|mysql|postgres|rabbitmq|redis)(?!:app-links)|git:(allow-host|auth)"
    r"|nginx:(start|stop)|letsencrypt:cron-job|apps:destroy)(:|$)"
)
PLAIN_NUMBER = re.compile(r"0|[1-9]\d{0,14}")


def fault(words: list[str]) -> str:
    """What dt would do wrong with these words; empty if nothing."""
    command, *arguments = words
    return fault_of_command(command, arguments) or fault_of_words(words) or fault_of_arguments(arguments)


def fault_of_command(command: str, arguments: list[str]) -> str:
    if GONE.match(command):
        return f"dt would send {command} as it was years ago: Dokku has no such command any more"
    if GLOBAL.match(command):
        return f"{command} is about no app, or about one to be named, and dt would put the remote's into it"
    if READS_STDIN.match(command):
        return f"{command} reads stdin, which dt passes nothing on to: it would wait for ever"
    if command in INTERACTIVE and not [word for word in arguments if word != "--"][command == "enter" :]:
        return f"{command} without a command is for a terminal, which dt does not give it"
    return ""


def fault_of_words(words: list[str]) -> str:
    return next((f"dt would split or unquote {word!r}" for word in words if re.search(r"[\s\"'\\]", word)), "")


def fault_of_arguments(arguments: list[str]) -> str:
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    for position, word in enumerate(before):
        # One letter at the end gets through: `logs -t`.
        if word.startswith("-") and not (re.fullmatch(r"-[A-Za-z]", word) and position == len(arguments) - 1):
            return f"dt would mangle {word}: put -- before the options"
        if re.match(r"[\d.]", word) and is_number(word) and not PLAIN_NUMBER.fullmatch(word):
            return f"dt would write the number {word} anew: put -- before it"
    return ""


def is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return bool(re.fullmatch(r"0[xX][0-9a-fA-F]+", word))
    return True


def by_ssh(words: list[str], host: str, app: str) -> str:
    """The same as a command that arrives as it is: options first, then the app, quoted for here and for there."""
    command, *arguments = words
    if "--" in arguments and command not in INTERACTIVE:
        arguments.remove("--")
    options = [word for word in arguments if word.startswith("-")] if command not in INTERACTIVE else []
    others = [word for word in arguments if word not in options]
    named = GLOBAL.match(command) or command in KNOWN_GLOBAL
    line = shlex.join([command, *options, *([] if named else [app]), *others])
    terminal = "-t " if command in INTERACTIVE else ""
    return f"ssh {terminal}dokku@{host} -- {shlex.quote(line)}"


def main() -> int:
    """Run what CMD says by dt; returns the exit code, which is dt's own 0 for everything that it was given."""
    try:
        words = shlex.split(os.environ.get("CMD", ""))
    except ValueError as error:
        print(f"dokku: CMD: {error}", file=sys.stderr)
        return 2
    if not words:
        print('dokku: say what: make dokku CMD="ps:report"', file=sys.stderr)
        return 2
    listed = subprocess.run(["git", "remote", "get-url", "dokku"], capture_output=True, text=True, check=False)
    remote = REMOTE.fullmatch(listed.stdout.strip())
    if not remote:
        print("dokku: no git remote dokku@HOST:APP called dokku: `make deploy-dokku` makes it", file=sys.stderr)
        return 2
    if found := fault(words):
        print(f"dokku: {found}: or type\n    {by_ssh(words, *remote.groups())}", file=sys.stderr)
        return 2
    return subprocess.run([PROGRAM, *words], stdin=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
