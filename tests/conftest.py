"""What the tests stand on: a throwaway PostgreSQL, and the packed dyno itself."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

# Before anything of the project is imported: the tests' own environment, with nothing of the user's.
SOCKETS = Path(tempfile.mkdtemp(prefix="boiler-tests-"))
USERS = ("DATABASE_URL", "REDIS_URL", "AMQP_URL", "DYNO", "PORT", "BOILER_STATUS", "EMBEDDED_POSTGRES")
for name in (*USERS, "PYTHONUNBUFFERED"):
    os.environ.pop(name, None)
os.environ |= {
    "DATABASE_URL": f"postgresql://dyno@{quote(str(SOCKETS), safe='')}/dyno",
    "DJANGO_SECRET_KEY": "a-key-for-the-tests-alone-0123456789-abcdefghijklmnopqrstuvwxyz",
    "DJANGO_SETTINGS_MODULE": "config.settings",
    "DJANGO_HTTPS": "0",
    "BOILER_DIR": str(SOCKETS / "boiler"),
}

import django  # noqa: E402
import psycopg  # noqa: E402
import pytest  # noqa: E402

from boiler.postgres import Embedded  # noqa: E402
from boiler.settings import ROOT  # noqa: E402
from tests.dyno import Dyno  # noqa: E402
from tests.needs import needs  # noqa: E402

django.setup()  # pytest-django has looked for settings before this file could name them


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: unit before integration."""
    items.sort(key=lambda item: "integration" in item.path.parts)


def pytest_unconfigure() -> None:
    shutil.rmtree(SOCKETS, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A throwaway PostgreSQL; its value is the superuser's URL without a database's name at the end."""
    embedded = Embedded(SOCKETS / "data", SOCKETS)
    embedded.prepare(wait=0)
    with embedded.serving():
        base = f"postgresql://postgres@{quote(str(SOCKETS), safe='')}/"
        with psycopg.connect(base + "postgres", autocommit=True) as connection:
            connection.execute("alter role dyno createdb")
        yield base


@pytest.fixture(scope="session")
def django_db_modify_db_settings(postgres: str) -> None:
    """pytest-django makes its test database in the throwaway PostgreSQL."""


@pytest.fixture
def database_url(postgres: str) -> Iterator[str]:
    """An empty database of its own, owned by a role that is no superuser."""
    name = f"test_{os.urandom(4).hex()}"
    with psycopg.connect(postgres + "postgres", autocommit=True) as connection:
        connection.execute(f"create database {name} owner dyno")
    yield f"postgresql://dyno@{quote(str(SOCKETS), safe='')}/{name}"
    with psycopg.connect(postgres + "postgres", autocommit=True) as connection:
        connection.execute(f"drop database {name} with (force)")


@pytest.fixture
def start_dyno(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Dyno]]:
    """Start packed dynos on the test's own database: `start_dyno(WEB_CONCURRENCY="1")`; all end with the test."""
    dynos: list[Dyno] = []

    def start(**environ: str) -> Dyno:
        dyno = Dyno(tmp_path / f"dyno{len(dynos)}", {"DATABASE_URL": database_url, **environ})
        dynos.append(dyno)
        return dyno.start("--release")

    yield start
    for dyno in dynos:
        dyno.kill()


@pytest.fixture
def dyno(start_dyno: Callable[..., Dyno]) -> Dyno:
    """One packed dyno, serving."""
    return start_dyno().wait_until_healthy()


@pytest.fixture
def chromium() -> str:
    return needs("chromium")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Callable[..., Dyno]]:
    """Dynos of other programs: `scratch("web: sleep 100")` runs the boiler on that LocalProcfile alone.

    The checkout is a copy with the boiler but without Django: `manage.py` there does nothing.
    """
    root = tmp_path / "a checkout"
    (root / "app").mkdir(parents=True)
    shutil.copytree(ROOT / "app" / "boiler", root / "app" / "boiler")
    shutil.copy(ROOT / "app" / "boil", root / "app" / "boil")
    shutil.copy(ROOT / "Procfile", root / "Procfile")
    (root / "app" / "manage.py").write_text("")
    dynos: list[Dyno] = []

    def make(local_procfile: str, **environ: str) -> Dyno:
        (root / "LocalProcfile").write_text(local_procfile)
        dyno = Dyno(tmp_path / f"scratch{len(dynos)}", {"DYNO_GRACE": "5", "VIRTUAL_ENV": "1", **environ}, root)
        dynos.append(dyno)
        return dyno

    yield make
    for dyno in dynos:
        dyno.kill()
