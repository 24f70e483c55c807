"""Install pgmq, the queue in PostgreSQL, and create Celery's queue.

Also when another broker is used: switching back then needs no migration.
"""

from __future__ import annotations

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from pgmq.install import get_embedded_install_sql

QUEUE = "celery"
# What jobs/transport.py and jobs/courier.py call; an older pgmq lacks some of them.
NEEDED = (
    "pgmq.create(text)",
    "pgmq.send_batch(text,jsonb[],timestamptz)",
    "pgmq.read(text,integer,integer,jsonb)",
    "pgmq.delete(text,bigint[])",
    "pgmq.archive(text,bigint[])",
    "pgmq.set_vt(text,bigint[],integer)",
    "pgmq.metrics(text)",
)


def install(_apps: object, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Run pgmq's SQL unless pgmq is there, as an extension or as SQL, and create the queue unless it is there."""
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('pgmq.meta')")
        if cursor.fetchone() == (None,):
            cursor.execute(get_embedded_install_sql())
        cursor.execute(
            "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regprocedure(name) IS NULL", [list(NEEDED)]
        )
        if missing := [name for (name,) in cursor.fetchall()]:
            raise RuntimeError(f"the pgmq in this database is too old, it lacks {', '.join(missing)}: update it")
        cursor.execute(
            "SELECT pgmq.create(%s) WHERE NOT EXISTS (SELECT FROM pgmq.meta WHERE queue_name = %s)", [QUEUE, QUEUE]
        )


class Migration(migrations.Migration):
    """Undoing it leaves pgmq where it is: the queue may hold jobs, and the schema other queues."""

    initial = True
    operations = [migrations.RunPython(install, migrations.RunPython.noop)]
