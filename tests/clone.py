"""A clone of what is under test, as a user has one, to deploy from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.docker import checkout


class GitClone:
    """A git checkout with the files of this one and with this environment's packages; nothing is committed yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        checkout(root)
        (root / ".venv").symlink_to(sys.prefix)
        self.git("init", "--quiet")
        (root / ".git" / "info" / "exclude").write_text("/.venv\n")

    def git(self, *words: str) -> str:
        settings = ["-c", "user.name=Cook", "-c", "user.email=cook@example.com", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *settings, *words], cwd=self.root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self) -> str:
        """Commit everything, if only the time of it; returns the commit's id."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "A change")
        return self.git("rev-parse", "HEAD")
