"""What `manage.py ready` looks for before the processes start."""

from __future__ import annotations

import pytest
from django.apps import apps
from django.db import connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from jobs.management.commands.ready import all_recorded, migration_files


def test_the_migrations_it_looks_for_are_those_that_django_finds() -> None:
    packages = {app.label: MigrationLoader.migrations_module(app.label)[0] for app in apps.get_app_configs()}
    found = {(app, name) for app, package in packages.items() for name in migration_files(package)}
    assert found == set(MigrationLoader(None).disk_migrations)


@pytest.mark.parametrize("package", [None, "demo.nowhere"])
def test_an_app_without_migrations_has_none(package: str | None) -> None:
    assert migration_files(package) == []


@pytest.mark.django_db
def test_one_migration_that_is_missing_is_noticed() -> None:
    assert all_recorded()
    MigrationRecorder(connection).record_unapplied("demo", "0001_initial")
    assert not all_recorded()
