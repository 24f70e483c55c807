"""`manage.py ready`: what the boiler runs before it starts anything that needs the database."""

from __future__ import annotations

import os
import pkgutil
import time
from argparse import ArgumentParser
from importlib.util import find_spec
from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError
from django.db import OperationalError, connection
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from boiler import image, processes
from boiler.settings import get
from boiler.sizing import remember

PAUSE = 0.5  # seconds between attempts
CONNECTION_LIMIT = """
    SELECT least(
        current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
        nullif((SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user), -1),
        nullif((SELECT datconnlimit FROM pg_database WHERE datname = current_database()), -1)
    )
"""


def connection_limit() -> int:
    """How many connections the database allows this user. Raises django.db.Error."""
    with connection.cursor() as cursor:
        cursor.execute(CONNECTION_LIMIT)
        return cursor.fetchone()[0]


def all_recorded() -> bool:
    """Whether the database's list of applied migrations has the name of every file. Raises django.db.Error.

    If not, Django must say what is missing: a squashed migration counts as applied where those that it replaces are.
    But it imports all of them for that, which takes ten times as long.
    """
    applied = MigrationRecorder(connection).applied_migrations().keys()
    return all(
        (app.label, name) in applied
        for app in apps.get_app_configs()
        for name in migration_files(MigrationLoader.migrations_module(app.label)[0])
    )


def migration_files(package: str | None) -> list[str]:
    """The migrations in a package, by the names that Django takes for some; none if there is no such package."""
    spec = find_spec(package) if package else None
    found = pkgutil.iter_modules(spec.submodule_search_locations) if spec else ()
    return [name for _, name, is_package in found if not is_package and name[0] not in "_~"]


class Command(BaseCommand):
    help = "Wait for the database, measure what the plan needs, then make sure that all migrations are applied."
    requires_system_checks = []  # noqa: RUF012 (Django's own declaration)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--database-only", action="store_true", help="do not look at the migrations")

    def handle(self, *_args: Any, database_only: bool, **_options: Any) -> None:
        # Forked from the web's image it has the web's pool, which would keep the reason of a failure to itself.
        connection.settings_dict["OPTIONS"].pop("pool", None)
        self._wait_for_database(get("DATABASE_WAIT"))
        remember(processes.resident(os.getpid()), image.shared, connection_limit())
        if not database_only:
            self._check_migrations()

    def _wait_for_database(self, seconds: float) -> None:
        """Wait for at most `seconds`. Raises CommandError with the last reason."""
        deadline = time.monotonic() + seconds
        said = False
        while True:
            try:
                connection.ensure_connection()
                return
            except OperationalError as error:
                reason = " ".join(str(error).split())
            if time.monotonic() >= deadline:
                raise CommandError(
                    f"DATABASE_URL: no database after {seconds} s: {reason}: start it or correct the URL"
                )
            if not said:
                self.stdout.write(f"waiting up to {seconds} s for the database: {reason}")
                said = True
            time.sleep(PAUSE)

    def _check_migrations(self) -> None:
        if all_recorded():
            return
        executor = MigrationExecutor(connection)
        missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
        if missing:
            names = [f"{migration.app_label}.{migration.name}" for migration, _ in missing]
            shown = ", ".join(names[:3] + ["…"] * (len(names) > 3))
            raise CommandError(
                f"migrations that are not applied: {len(names)} ({shown}): run the release phase, "
                "`python app/manage.py migrate`, or set RELEASE_AT_START=1, and start again"
            )
