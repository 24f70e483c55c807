"""dokku-toolbelt itself, from npm, with an `ssh` that notes what it is given; and `make dokku` before it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from boiler.settings import ROOT
from tests.needs import needs
from tests.wait import wait_for

SSH = """\
#!{python}
import json, sys
with open({noted!r}, "w") as file:
    json.dump(sys.argv[1:], file)
if "nosuch" in sys.argv:
    sys.exit(1)
if "stdin" in sys.argv:
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def toolbelt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the locked package installed, and an ssh for it."""
    needs("npm")
    root = tmp_path_factory.mktemp("checkout")
    (root / "dokku").mkdir()
    for name in ("package.json", "package-lock.json", "toolbelt.py"):
        shutil.copy(ROOT / "dokku" / name, root / "dokku" / name)
    subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=root / "dokku", check=True)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    subprocess.run(["git", "remote", "add", "dokku", "dokku@example.com:shop"], cwd=root, check=True)
    (root / "bin").mkdir()
    (root / "bin" / "ssh").write_text(SSH.format(python=sys.executable, noted=str(root / "noted")))
    (root / "bin" / "ssh").chmod(0o755)
    return root


def typed(root: Path, command: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    (root / "noted").unlink(missing_ok=True)
    environ = {**os.environ, "PATH": f"{root / 'bin'}:{os.environ['PATH']}", **environ}
    return subprocess.run(
        command,
        cwd=root,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def dt(toolbelt: Path) -> Callable[..., tuple[int, list[str]]]:
    """Type `dt …`; its exit code, and the words that ssh got for the host."""

    def type_it(*words: str) -> tuple[int, list[str]]:
        done = typed(toolbelt, [str(toolbelt / "dokku" / "node_modules" / ".bin" / "dt"), *words])
        return done.returncode, json.loads((toolbelt / "noted").read_text())

    return type_it


@pytest.fixture
def make_dokku(toolbelt: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """What `make dokku CMD=…` runs."""
    return lambda line: typed(toolbelt, [sys.executable, str(toolbelt / "dokku" / "toolbelt.py")], CMD=line)


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        (["logs", "-t"], ["logs", "shop", "-t"]),
        (["ps:report"], ["ps:report", "shop"]),
        (["config:get", "KEY"], ["config:get", "shop", "KEY"]),
        (["enter", "web", "ls"], ["enter", "shop", "web", "ls"]),
        (["run", "--", "ls", "-l"], ["run", "shop", "ls", "-l"]),
        (["config:set", "--", "--no-restart", "K=v"], ["config:set", "shop", "--no-restart", "K=v"]),
        # What it mangles:
        (["config:set", "--no-restart", "K=v"], ["config:set", "shop", "K=v", "-restart"]),
        (["config:import", "--format", "json"], ["config:import", "shop", "-format"]),
        (["config:set", "K=a b"], ["config:set", "shop", "K=a", "b"]),
        (["enter", "web", "echo", "007"], ["enter", "shop", "web", "echo", "7"]),
        (["postgres:create", "db"], ["postgres:create", "shop", "db"]),
    ],
)
def test_what_dt_sends(dt: Callable[..., tuple[int, list[str]]], words: list[str], sent: list[str]) -> None:
    assert dt(*words)[1] == ["-T", "dokku@example.com", "--", *sent]


def test_dt_ends_with_0_whatever_happened(dt: Callable[..., tuple[int, list[str]]]) -> None:
    assert dt("nosuch")[0] == 0


def test_dt_passes_no_stdin_on_and_does_not_end_it(toolbelt: Path) -> None:
    program = str(toolbelt / "dokku" / "node_modules" / ".bin" / "dt")
    path = f"{toolbelt / 'bin'}:{os.environ['PATH']}"
    (toolbelt / "noted").unlink(missing_ok=True)
    hangs = subprocess.Popen(
        [program, "stdin"],
        cwd=toolbelt,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for((toolbelt / "noted").exists, "dt has called ssh")
        with pytest.raises(subprocess.TimeoutExpired):
            hangs.wait(3)
    finally:
        os.killpg(hangs.pid, 9)
        hangs.wait()


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("logs -t", ["logs", "shop", "-t"]),
        ("ps:report", ["ps:report", "shop"]),
        ("config:set -- --no-restart K=v", ["config:set", "shop", "--no-restart", "K=v"]),
        ("enter web app/boil status", ["enter", "shop", "web", "app/boil", "status"]),
        ("apps:list", ["apps:list"]),
    ],
)
def test_what_arrives_as_it_was_typed_is_left_to_dt(
    toolbelt: Path, make_dokku: Callable[[str], subprocess.CompletedProcess[str]], line: str, sent: list[str]
) -> None:
    done = make_dokku(line)
    assert done.returncode == 0, done.stderr
    assert json.loads((toolbelt / "noted").read_text()) == ["-T", "dokku@example.com", "--", *sent]


@pytest.mark.parametrize(
    ("line", "why", "instead"),
    [
        ("config:set --no-restart K=v", "mangle --no-restart", "config:set --no-restart shop K=v"),
        ("logs -n 5", "mangle -n", "logs -n shop 5"),
        ("config:set 'K=a b'", "split or unquote 'K=a b'", """config:set shop '"'"'K=a b'"'"''"""),
        ("config:import -", "reads stdin", "config:import - shop"),
        ("enter web", "for a terminal", "-t dokku@example.com -- 'enter shop web'"),
        ("run", "for a terminal", "-t dokku@example.com -- 'run shop'"),
        ("enter web echo 007", "write the number 007 anew", "enter shop web echo 007"),
        ("postgres:create db", "about no app", "'postgres:create db'"),
        ("plugin:list", "about no app", "plugin:list"),
        ("ps:restartall", "no such command any more", "ps:restartall"),
    ],
)
def test_what_dt_would_mangle_is_refused_with_the_ssh_command_to_type(
    toolbelt: Path, make_dokku: Callable[[str], subprocess.CompletedProcess[str]], line: str, why: str, instead: str
) -> None:
    done = make_dokku(line)
    assert done.returncode == 2
    assert why in done.stderr
    assert instead in done.stderr
    assert not (toolbelt / "noted").exists()


def test_without_the_remote_the_deployment_is_named(toolbelt: Path) -> None:
    subprocess.run(["git", "remote", "rename", "dokku", "other"], cwd=toolbelt, check=True)
    try:
        done = typed(toolbelt, [sys.executable, str(toolbelt / "dokku" / "toolbelt.py")], CMD="ps:report")
    finally:
        subprocess.run(["git", "remote", "rename", "other", "dokku"], cwd=toolbelt, check=True)
    assert done.returncode == 2
    assert "`make deploy-dokku` makes it" in done.stderr
