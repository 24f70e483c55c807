"""LocalProcfile as the boiler reads it."""

import shutil
from pathlib import Path

import pytest
from honcho.environ import parse_procfile

from boiler import preflight, procfile
from boiler.procfile import Entry
from boiler.settings import ROOT


def mistakes(folder: Path, text: str) -> list[str]:
    (folder / "LocalProcfile").write_text(text)
    return [str(mistake) for mistake in preflight.local_procfile(folder, [], {"PATH": "/usr/bin:/bin"})[1]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "LocalProcfile: empty: write one line"),
        ("# only a comment\n\n", "LocalProcfile: empty: write one line"),
        ("web: sleep 1\nthis is no line\n", "LocalProcfile:2: 'this is no line' is not `name: command`"),
        ("web: sleep 1\n\nweb: sleep 2\n", "LocalProcfile:3: a second 'web', the first is in line 1"),
        ("worker: sleep 1\n", "LocalProcfile: no `web`"),
        ("web: sleep 1\nx: no-such-program 1\n", "LocalProcfile:2: x: there is no command 'no-such-program'"),
        ("web: sleep 1\nx: ./missing/script\n", "LocalProcfile:2: x: there is no command './missing/script'"),
        ("web: sleep '1\n", "LocalProcfile:1: web: No closing quotation"),
        ("web: A=1\n", "LocalProcfile:1: web: no command after the colon"),
        ("web: sleep 1\nw: sh celery -A x worker -P solo\n", "LocalProcfile:2: w: the pool 'solo' can't put back"),
        ("web: sleep 1\nw: sh celery -A x worker --pool=solo\n", "LocalProcfile:2: w: the pool 'solo' can't put back"),
        ("web: sleep 1\nw: sh celery -A x worker -B\n", "LocalProcfile:2: w: -B schedules in every worker"),
    ],
)
def test_each_mistake_is_one_line_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    found = mistakes(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith(expected)
    assert "\n" not in found[0]


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_the_tested_pools_are_taken(tmp_path: Path, pool: str) -> None:
    assert mistakes(tmp_path, f"web: sleep 1\nworker: sh celery -A x worker --pool {pool}\n") == []


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    assert len(mistakes(tmp_path, "oops\nx: no-such-program\nx: sleep 1\n")) == 4  # and no `web`


def test_a_missing_file_and_one_that_is_no_text_are_mistakes(tmp_path: Path) -> None:
    assert "missing" in str(procfile.read(tmp_path / "LocalProcfile")[1][0])
    (tmp_path / "LocalProcfile").write_bytes(b"web: \xff\xfe\n")
    assert "can't be read" in str(procfile.read(tmp_path / "LocalProcfile")[1][0])


def test_windows_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "LocalProcfile").write_bytes(b"web: sleep 1\r\nworker: sleep 2\r\n")
    entries, wrong = procfile.read(tmp_path / "LocalProcfile")
    assert [entry.command for entry in entries] == ["sleep 1", "sleep 2"]
    assert not wrong


def test_plain_words_start_without_a_shell() -> None:
    environ = {"PORT": "5000"}
    assert Entry("web", "serve --port $PORT --host ${HOST} x").argv(environ) == [
        "serve",
        "--port",
        "5000",
        "--host",
        "x",
    ]
    assert Entry("web", "serve 'two words'").argv(environ) == ["serve", "two words"]
    assert Entry("web", "DEBUG=1 serve").argv(environ) == ["env", "DEBUG=1", "serve"]


@pytest.mark.parametrize(
    "command", ["a && b", "a | b", "a > file", "a; b", "echo $(date)", 'echo "$PORT x"', "ls *.py"]
)
def test_what_only_a_shell_can_do_goes_to_a_shell(command: str) -> None:
    assert Entry("x", command).argv({}) == ["/bin/sh", "-c", command]


def test_the_repositorys_own_files_have_no_mistake_and_read_the_same_in_honcho() -> None:
    for name in ("Procfile", "LocalProcfile"):
        entries, wrong = procfile.read(ROOT / name)
        assert not wrong
        assert all(entry.is_plain for entry in entries), "herokuish evaluates the lines: plain words only"
        as_honcho = parse_procfile((ROOT / name).read_text()).processes
        assert dict(as_honcho) == {entry.name: entry.command for entry in entries}
    assert [entry.name for entry in entries] == ["web", "worker", "beat"]


def test_quotes_in_procfile_are_a_mistake(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Procfile", tmp_path)
    with (tmp_path / "Procfile").open("a") as file:
        file.write("extra: echo 'a b' && true\n")
    assert "plain words only" in str(preflight.platform_procfile(tmp_path)[0])
