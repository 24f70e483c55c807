"""LocalProcfile: what the boiler runs inside the dyno, one `name: command` a line."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from honcho.environ import PROCFILE_LINE

# What only a shell can carry out: operators, patterns, substitutions.
SHELL_SYNTAX = re.compile(r"[|&;<>()`*?\[\]~#!\\]|\$\(")
QUOTE = re.compile(r"""["']""")
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


@dataclass(frozen=True)
class Entry:
    """One line of a Procfile: an inner process's name and its command."""

    name: str
    command: str
    line: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether the command is nothing but words: no quotes, no operators, no assignments before it."""
        return not (self.needs_shell or QUOTE.search(self.command) or ASSIGNMENT.match(self.command))

    @property
    def needs_shell(self) -> bool:
        """Whether only a shell can carry the command out."""
        variables_in_quotes = "$" in self.command and QUOTE.search(self.command)
        return bool(SHELL_SYNTAX.search(self.command) or variables_in_quotes)

    def argv(self, environ: Mapping[str, str]) -> list[str]:
        """The command as a list, variables filled in. Raises ValueError for a quote that is not closed.

        A shell is used only where it must be: it would stand between the boiler's signals and the program.
        """
        if self.needs_shell:
            return ["/bin/sh", "-c", self.command]
        known = {name: environ.get(name, "") for name in Template(self.command).get_identifiers()}
        words = shlex.split(Template(self.command).safe_substitute(known))
        return ["env", *words] if ASSIGNMENT.match(self.command) else words


@dataclass(frozen=True)
class Mistake:
    """Something wrong in a file: one line that says what, where, and what to do."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


def read(path: Path) -> tuple[list[Entry], list[Mistake]]:
    """The entries of a Procfile and every mistake in it.

    Lines are told apart as honcho does, but a line that honcho would pass over in silence is a mistake.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return [], [Mistake(path.name, 0, "missing: write one line `name: command` for each inner process")]
    except (OSError, UnicodeDecodeError) as error:
        return [], [Mistake(path.name, 0, f"can't be read: {error}")]
    entries: dict[str, Entry] = {}
    mistakes = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = PROCFILE_LINE.match(line)
        if not match:
            mistakes.append(Mistake(path.name, number, f"{line.strip()[:60]!r} is not `name: command`"))
        elif match[1] in entries:
            first = entries[match[1]].line
            mistakes.append(
                Mistake(path.name, number, f"a second {match[1]!r}, the first is in line {first}: rename one")
            )
        else:
            entries[match[1]] = Entry(match[1], match[2].strip(), number)
    if not entries and not mistakes:
        mistakes.append(Mistake(path.name, 0, "empty: write one line `name: command` for each inner process"))
    return list(entries.values()), mistakes


def missing_commands(file: str, entries: list[Entry], environ: Mapping[str, str], root: Path) -> list[Mistake]:
    """The entries whose program is not to be found, as the dyno would look for it."""
    mistakes = []
    for entry in entries:
        try:
            words = [word for word in entry.argv(environ) if not ASSIGNMENT.match(word)]
        except ValueError as error:
            mistakes.append(Mistake(file, entry.line, f"{entry.name}: {error}: close the quote"))
            continue
        program = next((word for word in words if word != "env"), "")
        place = str(root / program) if "/" in program else program
        if not shutil.which(place, path=environ.get("PATH")):
            what = f"there is no command {program!r} on PATH: install it" if program else "no command after the colon"
            mistakes.append(Mistake(file, entry.line, f"{entry.name}: {what}"))
    return mistakes
