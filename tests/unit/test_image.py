"""Which programs are forked from an image, and which start by themselves."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from boiler.image import name_for

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
