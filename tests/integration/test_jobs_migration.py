"""Installing pgmq: for a role without superuser's rights, and where pgmq is already."""

from __future__ import annotations

import os
import subprocess
import sys

import psycopg
import pytest
from pgmq.install import get_embedded_install_sql

from tests.jobs import APP, Queue, migrate


@pytest.fixture
def empty(postgres, database_url) -> Queue:
    return Queue(database_url, postgres + "postgres")


def test_an_owner_who_is_no_superuser_gets_the_queue(empty):
    assert empty.rows("SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == [(False,)]
    assert migrate(empty.url).returncode == 0
    assert empty.rows("SELECT queue_name FROM pgmq.meta") == [("celery",)]


def test_pgmq_that_was_installed_before_and_its_messages_stay(empty):
    with psycopg.connect(empty.url) as connection:
        connection.execute(get_embedded_install_sql())
        connection.execute(
            """SELECT pgmq.create('celery'), pgmq.create('other'), pgmq.send('celery', '{"kept": true}')"""
        )
    assert migrate(empty.url).returncode == 0
    assert empty.rows("SELECT message FROM pgmq.q_celery") == [({"kept": True},)]
    assert empty.rows("SELECT queue_name FROM pgmq.meta ORDER BY 1") == [("celery",), ("other",)]


def test_undoing_and_doing_it_again_keeps_the_messages(queue):
    queue.rows("SELECT pgmq.send('celery', '{}')")
    for target in ("zero", "0001"):
        command = [sys.executable, str(APP / "manage.py"), "migrate", "jobs", target]
        environ = {**os.environ, "DATABASE_URL": queue.url}
        subprocess.run(command, env=environ, check=True, capture_output=True)
    assert queue.size() == 1


def test_a_pgmq_that_is_too_old_is_refused_with_what_it_lacks(empty):
    with psycopg.connect(empty.url) as connection:
        connection.execute(get_embedded_install_sql())
        connection.execute("DROP FUNCTION pgmq.set_vt(text, bigint[], integer)")
    done = migrate(empty.url)
    assert done.returncode != 0
    assert "lacks pgmq.set_vt(text,bigint[],integer): update it" in done.stderr
