"""docs/verify.md lists what there is."""

from __future__ import annotations

import importlib
import re

from boiler.settings import ROOT
from tests.verify.target import NEEDS

TEXT = (ROOT / "docs" / "verify.md").read_text()


def test_every_check_is_documented_by_its_line_and_no_other_is() -> None:
    modules = sorted(path.stem for path in (ROOT / "tests" / "verify").glob("test_*.py"))
    lines = [
        check.__doc__.splitlines()[0].rstrip(".")
        for module in modules
        for name, check in vars(importlib.import_module(f"tests.verify.{module}")).items()
        if name.startswith("test_")
    ]
    table = TEXT.partition("## Checks")[2].partition("## How")[0]
    assert re.findall(r"^\| (.+?) \| ", table, re.MULTILINE)[2:] == lines


def test_every_target_is_documented_with_what_it_needs() -> None:
    commands = re.findall(r"^\| `make verify(.*?)` \|", TEXT, re.MULTILINE)
    documented = {}
    for words in commands:
        variables = dict(word.split("=", 1) for word in words.split())
        target = variables.pop("TARGET", "local")
        documented[target] = set(variables)
    assert documented == {target: set(names) for target, names in NEEDS.items()}
