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
