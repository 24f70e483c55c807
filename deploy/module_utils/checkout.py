"""The code that a deployment releases: the commit that is checked out."""

from __future__ import annotations

import subprocess

SHOWN = 5  # names of changed files in a message


class CheckoutError(Exception):
    """The checkout can't be deployed; the message is one line."""


class Checkout:
    """A git work tree."""

    def __init__(self, root: str) -> None:
        self.root = root

    def head(self) -> str:
        """The id of the commit that is checked out. Raises CheckoutError if there is none."""
        return self._git("rev-parse", "--verify", "HEAD").decode().strip()

    def changes(self) -> list[str]:
        """The files that differ from HEAD, new ones included; deploy/ aside, which is for this side alone."""
        words = ("status", "--porcelain", "-z", "--no-renames", "--", ".", ":(exclude)deploy")
        rows = self._git(*words).decode().split("\0")
        return [row[3:] for row in rows if row]

    def require_clean(self, *, dirty: bool) -> None:
        """Raise CheckoutError if there are changes that HEAD does not have, unless `dirty` says to leave them out."""
        changes = self.changes()
        if not changes or dirty:
            return
        names = ", ".join(changes[:SHOWN]) + (f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else "")
        raise CheckoutError(
            f"not committed, so it would not be deployed: {names}: commit, or deploy HEAD without it by DIRTY=1"
        )

    def archive(self, commit: str) -> bytes:
        """The commit's files as a gzipped tar."""
        return self._git("archive", "--format=tar.gz", commit)

    def _git(self, *words: str) -> bytes:
        try:
            done = subprocess.run(["git", "-C", self.root, *words], capture_output=True, check=False)
        except FileNotFoundError:
            raise CheckoutError("there is no git on PATH: install it") from None
        if done.returncode:
            reason = " ".join(done.stderr.decode(errors="replace").split())
            raise CheckoutError(f"{self.root}: git {words[0]}: {reason}: deploy from a git checkout with a commit")
        return done.stdout
