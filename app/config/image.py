"""What the boiler's images load (boiler/image.py), and what the processes forked from them must have anew."""

from __future__ import annotations

import os
from importlib import import_module

import django
from celery import current_app

from boiler import sizing
from boiler.settings import get

# What gunicorn, Celery and manage.py would import after their start, or with the first query or job of each process.
MODULES = {
    "web": (
        "gunicorn.app.wsgiapp",
        "gunicorn.arbiter",
        "gunicorn.glogging",
        "celery.app.amqp",
        "celery.app.events",
        "config.web_worker",
        "config.wsgi",
        "config.urls",
        "psycopg_pool",
    ),
    "jobs": (
        "billiard.popen_fork",
        "billiard.sharedctypes",
        "celery.__main__",
        "celery.bin.celery",
        "celery.apps.worker",
        "celery.apps.beat",
        "celery.app.amqp",
        "celery.app.log",
        "celery.app.control",
        "celery.app.events",
        "celery.backends.base",
        "celery.concurrency.asynpool",
        "celery.concurrency.prefork",
        "celery.worker.autoscale",
        "celery.worker.components",
        "celery.worker.consumer",
        "celery.worker.consumer.delayed_delivery",
        "celery.worker.strategy",
        "jobs.beat",
        "jobs.lease",
        "jobs.transport",
        "jobs.worker",
    ),
}


def load(name: str) -> None:
    """Load the app for gunicorn (`web`) or for Celery and manage.py (`jobs`)."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    if name == "web":
        os.environ["BOILER_WEB"] = "1"
    django.setup()
    from django.db import connections  # noqa: PLC0415 (needs the settings)

    for module in MODULES[name]:
        import_module(module)
    if name == "jobs":
        current_app.loader.import_default_modules()
    # Each process would make these anew, in 3 to 6 MB of its own (measured).
    for connection in connections.all():
        connection.get_connection_params()  # with psycopg's adapters
    current_app.finalize()
    for part in ("queues", "router", "send_task_message"):
        getattr(current_app.amqp, part)
    connections.close_all()


def renew() -> None:
    """Work out again what settings.py worked out for the image: the process has a name and a plan of its own."""
    from django.conf import settings  # noqa: PLC0415 (as above)

    from config import settings as source  # noqa: PLC0415

    sizing.here.cache_clear()
    settings.APPLICATION_NAME = source.application_name()
    settings.DATABASES["default"].update(source.database(source.database_url()))
    current_app.conf.worker_concurrency = get("WORKER_CONCURRENCY")
    current_app.conf.worker_max_memory_per_child = get("WORKER_CHILD_MEMORY") * 1024
