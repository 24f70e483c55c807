"""Which programs are forked from an image, and which start by themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from boiler.image import APP, name_for

ENVIRON = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}/usr/bin{os.pathsep}/bin"}


@pytest.mark.parametrize(
    ("command", "image"),
    [
        ("gunicorn --config app/config/gunicorn.py config.wsgi", "web"),
        ("celery --app config worker --pool prefork", "jobs"),
        ("celery --app config worker --pool threads", "jobs"),
        ("celery --app config beat", "jobs"),
        ("python app/manage.py ready", "jobs"),
        ("celery --app config worker --pool gevent", None),
        ("celery --app config worker --pool=gevent", None),
        ("celery --app config worker -P gevent", None),
        ("python -c pass", None),
        ("sleep 100", None),
        ("no-such-program", None),
    ],
)
def test_programs_of_this_python_are_forked_but_for_a_worker_that_gevent_must_patch_first(
    command: str, image: str | None
) -> None:
    assert name_for(command.split(), ENVIRON) == image


def test_programs_of_an_environment_that_is_reached_by_a_link_are_this_pythons(tmp_path: Path) -> None:
    (tmp_path / "bin").symlink_to(Path(sys.executable).parent)
    program = tmp_path / "gunicorn"
    shell = f'#!/bin/sh\n\'\'\'exec\' "{tmp_path}/bin/python" "$0" "$@"'
    for first in (f"#!{tmp_path}/bin/python3", shell):
        program.write_text(f"{first}\nimport gunicorn\n")
        program.chmod(0o700)
        assert name_for([str(program)], ENVIRON) == "web"


@pytest.mark.parametrize(
    ("code", "refused"),
    [
        ("import threading; HERE = threading.local()", "library.HERE would block gevent"),
        ("import threading\nclass Here(threading.local): pass", "library.Here would block gevent"),
        ("import ssl, threading\nfrom time import sleep\nlock, again = threading.Lock(), threading.RLock()", ""),
    ],
)
def test_a_shared_library_gets_what_gevent_replaces_or_is_refused(tmp_path: Path, code: str, refused: str) -> None:
    (tmp_path / "library.py").write_text(code)
    program = "from boiler import image; image._load_shared(); image._patch()"
    if not refused:
        program += """
import library, threading, time
assert library.sleep is time.sleep
assert (type(library.lock), type(library.again)) == (type(threading.Lock()), type(threading.RLock()))
"""
    environ = {**os.environ, "PYTHONPATH": f"{APP}{os.pathsep}{tmp_path}", "SHARED_IMPORTS": "library"}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == bool(refused)
    assert refused in done.stderr
    assert done.stderr.count("\n") <= 1, "one line"
