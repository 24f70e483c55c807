"""The modules piku_… without a host: what is refused, what is written, what a look at the host comes to."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType
from typing import Any

import ansible.module_utils
import pytest

from boiler.settings import ROOT

ansible.module_utils.__path__.append(str(ROOT / "deploy" / "module_utils"))

from ansible.module_utils.piku import FAILURE, Piku, PikuError, parse  # noqa: E402


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "deploy" / "library" / f"{name}.py")
    loaded = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", "redis://:p%40ss@127.0.0.1"),
        ("A", "$HOME"),
        ("A", "@(file)"),
        ("A", "two  spaces"),
        ("A", " a space before"),
        ("A", "one\nB=2"),
        ("PYTHON_VERSION", "3.11"),
    ],
)
def test_a_value_that_would_not_reach_the_app_is_refused_without_being_shown(name: str, value: str) -> None:
    with pytest.raises(PikuError, match=f"config: {name}: ") as error:
        module("piku_config").refuse_corrupted({name: value})
    assert value not in str(error.value)


def test_a_grace_that_piku_does_not_give_and_a_name_that_is_none_are_refused() -> None:
    refuse = module("piku_config").refuse_corrupted
    with pytest.raises(PikuError, match="use 25 or less"):
        refuse({"DYNO_GRACE": "30"})
    with pytest.raises(PikuError, match="no name of an environment variable"):
        refuse({"A B": "1"})
    refuse({"DYNO_GRACE": "25", "PYTHON_VERSION": None, "A": "a#b;c=\"d\" 'e'\\"})


def test_a_changed_file_keeps_its_comments_and_other_lines() -> None:
    text = "# mine\nA=1\n#B=0\nB=2\nC=3\n"
    assert module("piku_config").edited(text, {"B": "5", "C": None, "D": "6"}) == "# mine\nA=1\n#B=0\nB=5\nD=6\n"


def test_settings_are_read_as_piku_reads_them() -> None:
    assert parse("# A=0\nA = b=c \n\nB=\n") == {"A": "b=c", "B": ""}
    assert parse("web:1\nworker:0\n", ":") == {"web": "1", "worker": "0"}


@pytest.mark.parametrize(
    "line", ["Error: x", "ERROR: No matching", "-----> Exiting due to release command error value: 1"]
)
def test_lines_of_a_failure_are_known(line: str) -> None:
    assert FAILURE.search(line)
    assert not FAILURE.search(f"-----> {line.removeprefix('-----> Exiting due to ')}")


@pytest.mark.parametrize(
    ("app", "host"), [("Shop", "h"), ("-x", "h"), ("a_b", "h"), ("shop", "-oProxyCommand=x"), ("shop", "")]
)
def test_names_that_ssh_or_piku_would_take_for_something_else_are_refused(app: str, host: str) -> None:
    with pytest.raises(PikuError):
        Piku(app, host)


def test_what_is_missing_is_told_in_words() -> None:
    state = module("piku_release").Deployed
    wanted = state("b" * 40, True, frozenset({"shop_web.1.ini"}), {"A": "1"})
    assert (
        state("b" * 40, True, frozenset({"shop_web.1.ini"}), {"A": "1", "PORT": "9", "NGINX_X": "y"}).lacks(wanted)
        == []
    )
    before = state("a" * 40, False, frozenset(), {"A": "0", "B": "1"})
    assert before.removed(wanted) == {"B"}
    assert before.lacks(wanted) == [
        "runs aaaaaaaaaaaa",
        "packages are missing",
        "the processes are others",
        "the settings are not in force",
        "removed settings are in force",
    ]


def test_the_dyno_from_before_the_release_does_not_count() -> None:
    missing = module("piku_dynos").missing
    status: dict[str, Any] = {"boiler": {"uptime": 50}, "processes": [{"name": "web", "state": "running"}]}
    assert missing(f"1000\n960\n{json.dumps(status)}") == "the dyno from before finishes its work"
    assert missing(f"1000\n940\n{json.dumps(status)}") == ""
    status["processes"][0]["state"] = "backoff"
    assert missing(f"1000\n940\n{json.dumps(status)}") == "web is backoff"
    assert missing("1000\n940\nboil: no dyno\n") == "boil: no dyno"
