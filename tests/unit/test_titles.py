"""Titles of processes, as `ps` shows them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from boiler.settings import ROOT

PROGRAM = f"""
import os, sys
sys.path.insert(0, {str(ROOT / "app")!r})
from boiler import cli, titles
cli.complete_environment(os.environ)
titles.set_title("supervisor")
print(open("/proc/self/cmdline").read().strip("\\0 "))
"""


@pytest.mark.parametrize("first", ["PATH=/usr/bin:/bin", "WEB_CONCURRENCY=", "ANY=1"])
def test_a_title_is_shown_whatever_variable_comes_first_in_the_environment(first: str) -> None:
    environ = dict([first.split("=")]) | {"PATH": "/usr/bin:/bin", "HOME": "/"}
    shown = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, check=True)
    assert shown.stdout == "boiler: supervisor\n"
