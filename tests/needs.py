"""Programs that some tests need beyond what `make test` installs."""

from __future__ import annotations

import os
import shutil

import pytest


def needs(program: str) -> str:
    """The path of a program. Without it the test is skipped with the reason, but fails in CI."""
    path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/lib/postgresql/15/bin")
    if path:
        return path
    reason = f"needs {program}: install Debian's package for it"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def needs_root(what: str) -> None:
    """Skip the test with the reason where this is an ordinary user, fail in CI."""
    if os.geteuid() == 0:
        return
    reason = f"{what}: needs root"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
