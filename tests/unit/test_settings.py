"""Settings from the environment."""

import os
import re

import pytest

from boiler import cli, preflight, settings, sizing
from boiler.settings import ROOT, SETTINGS, SettingError

KEY = {"DJANGO_SECRET_KEY": "0123456789" * 6}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "abc"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("WEB_CONCURRENCY", "-1"),
        ("WEB_WORKER_CLASS", "tornado"),
        ("ADMIN_PATH", "a/b"),
        ("DJANGO_DEBUG", "yes"),
        ("DATABASE_URL", "mysql://user@host/name"),
        ("DATABASE_URL", "postgresql://user:secret@host:port/name"),
        ("DATABASE_URL", "nonsense"),
        ("REDIS_URL", "http://host"),
        ("AMQP_URL", "redis://host"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_setting(name: str, value: str) -> None:
    found = preflight.wrong_settings({**KEY, name: value})
    assert len(found) == 1
    assert found[0].startswith(name)
    assert "correct or unset it" in found[0]
    assert "secret@" not in found[0]


def test_a_wrong_database_url_is_told_once_though_the_plan_looks_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "nonsense")
    sizing.here.cache_clear()
    assert len(preflight.wrong_settings(os.environ)) == 1
    sizing.here.cache_clear()


def test_an_empty_variable_counts_as_unset() -> None:
    assert settings.get("PORT", {"PORT": ""}) == 5000


def test_a_missing_secret_key_names_the_command_that_makes_one() -> None:
    assert "secrets.token_urlsafe" in preflight.wrong_settings({})[0]
    assert "shorter than 50" in preflight.wrong_settings({"DJANGO_SECRET_KEY": "short"})[0]
    assert preflight.wrong_settings(KEY) == []


def test_an_ephemeral_disk_gets_no_embedded_database_unless_told() -> None:
    with pytest.raises(SettingError, match="DYNO says that this platform's disk is thrown away"):
        settings.database_url({"DYNO": "web.1"})
    assert settings.database_url({"DYNO": "web.1", "EMBEDDED_POSTGRES": "/disk/postgres"})
    assert settings.database_url({"DYNO": "web.1", "DATABASE_URL": "postgres://u@h/n"}) == "postgres://u@h/n"


def test_the_broker_follows_from_the_urls() -> None:
    assert settings.broker({}) == "pgmq"
    assert settings.broker({"REDIS_URL": "redis://h"}) == "redis"
    assert settings.broker({"AMQP_URL": "amqp://h"}) == "amqp"


def test_every_setting_is_documented_with_its_default_and_no_other_is() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    documented = {name: default.strip("`") for name, default in rows}
    assert documented == {name: setting.default or "-" for name, setting in SETTINGS.items()}


def test_settings_are_read_in_one_place_only() -> None:
    # What the boiler tells its own processes (BOILER_…) and what Python and Django define are no settings.
    internal = {"DJANGO_SETTINGS_MODULE", "PATH", "PYTHONUNBUFFERED", "VIRTUAL_ENV"}
    for path in (ROOT / "app").rglob("*.py"):
        read = set(re.findall(r"""environ(?:\.\w+\(|\[)\s*["']([A-Z_]+)["']""", path.read_text()))
        # cli.py fills in what its processes are to find, and takes out what a buildpack has set.
        completed = {
            "PORT",
            "DATABASE_URL",
            "STATUS_TOKEN",
            "WEB_CONCURRENCY",
            "WEB_CONCURRENCY_SET_BY",
            "GUNICORN_CMD_ARGS",
        }
        allowed = internal | (completed if path.name == "cli.py" else set())
        wrong = {name for name in read - allowed if not name.startswith("BOILER_")}
        assert not wrong, f"{path} reads {wrong}: add it to boiler/settings.py"


def test_an_empty_setting_reaches_no_inner_process() -> None:
    """gunicorn takes an empty WEB_CONCURRENCY for a number, and does not start."""
    environ = {"WEB_CONCURRENCY": "", "PORT": "", "MY_OWN": ""}
    cli.complete_environment(environ)
    assert environ.keys() >= {"MY_OWN"}
    assert not environ.keys() & {"WEB_CONCURRENCY", "PORT"}


def test_a_shared_import_that_is_not_there_is_named() -> None:
    (line,) = preflight.wrong_settings({**KEY, "SHARED_IMPORTS": "json, nosuch.thing"})
    assert line == "SHARED_IMPORTS: there is no module nosuch: correct it, or add it to the dependencies"
