"""Connections to Django's database: more of them, and the end of those that broke."""

from __future__ import annotations

import select
from typing import Any

import psycopg
from django.db import DEFAULT_DB_ALIAS, connections


def connect(**session: Any) -> psycopg.Connection:
    """A connection of one's own to Django's database, in autocommit, with Django's parameters.

    `session`: settings of the PostgreSQL session. Raises psycopg.OperationalError.
    """
    params = connections[DEFAULT_DB_ALIAS].get_connection_params()
    for django_only in ("context", "cursor_factory"):
        del params[django_only]
    connection = psycopg.connect(**params, autocommit=True)
    for name, value in session.items():
        connection.execute("SELECT set_config(%s, %s, false)", [name, str(value)])
    return connection


def is_broken(connection: psycopg.Connection) -> bool:
    """Whether an idle connection can't be used any more; takes no round trip.

    Nothing arrives unasked on an idle connection but the server's farewell or the end of the stream.
    """
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def close_broken() -> None:
    """Close this thread's database connections that a restart of PostgreSQL broke: Django opens new ones."""
    for wrapper in connections.all(initialized_only=True):
        if wrapper.connection is not None and not wrapper.in_atomic_block and is_broken(wrapper.connection):
            wrapper.close()
