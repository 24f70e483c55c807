"""gunicorn's settings; each that a user may want to change is an environment variable."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from typing import Any

APP = str(Path(__file__).resolve().parents[1])
if APP not in sys.path:
    sys.path.insert(0, APP)

from boiler.drain import last_call  # noqa: E402
from boiler.settings import SettingError, get  # noqa: E402
from boiler.titles import set_title  # noqa: E402

CLASSES = {"gevent": "GeventWorker", "gthread": "ThreadWorker", "sync": "SyncWorker"}

try:
    kind = get("WEB_WORKER_CLASS")
    workers = get("WEB_CONCURRENCY")
    worker_connections = get("WEB_CONNECTIONS")
    max_requests = get("WEB_MAX_REQUESTS")
    max_requests_jitter = max_requests // 10  # so that they do not all go at once
    threads = get("WEB_THREADS") if kind == "gthread" else 1
    bind = f"{get('BIND_ADDRESS')}:{get('PORT')}"
    loglevel = get("LOG_LEVEL")
    grace = get("DYNO_GRACE")
    get("WEB_LINGER")  # for web_worker.py, which reads it when it is too late to complain
except SettingError as error:
    raise SystemExit(f"error: {error}") from None

if kind == "gevent":
    # Before Django, psycopg or anything else picks up a lock, a socket or a thread that blocks.
    from gevent import monkey

    monkey.patch_all()

os.environ["BOILER_WEB"] = "1"  # settings.py gives web processes a pool of database connections
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

worker_class = f"config.web_worker.{CLASSES[kind]}"
preload_app = True  # imported once, shared by all workers
control_socket_disable = True
keepalive = 95  # Heroku's router reuses a connection for up to 90 s and must not find it closed
# Whole seconds, from SIGTERM to the master's SIGKILL for its workers; at the last call the boiler sends SIGQUIT.
graceful_timeout = max(1, int(last_call(grace)))
forwarded_allow_ips = "*"  # only the platform's router reaches us, from an address that nobody knows


def when_ready(arbiter: Any) -> None:
    """Let SIGTERM end a worker that has no handlers of its own yet.

    A worker that ends before the master has got its SIGTERM is replaced. With the master's handlers, which it
    inherits, its successor would not notice the SIGTERM that follows, and hold up the stop to its very end.
    """
    from config.web_worker import quick_exit  # noqa: PLC0415 (not before the patching)

    def on_sigterm(number: int, frame: Any) -> None:
        if os.getpid() != arbiter.pid:
            os._exit(0)
        quick_exit.wanted = True
        arbiter.signal(number, frame)

    signal.signal(signal.SIGTERM, on_sigterm)
    gc.freeze()  # a collection in a worker would write to all that it shares with the others


def pre_fork(_arbiter: Any, _worker: Any) -> None:
    """Title the master: gunicorn sets a title of its own until just before its first fork."""
    set_title("gunicorn master", default="web")


def post_fork(_arbiter: Any, _worker: Any) -> None:
    """Title the worker after gunicorn did."""
    set_title(f"gunicorn worker ({kind})", default="web")


def worker_exit(_arbiter: Any, _worker: Any) -> None:
    """Close the pool, whose threads would complain at the interpreter's end."""
    if "django.db" not in sys.modules:
        return  # another WSGI application, with nothing to close
    from django.db import connection  # noqa: PLC0415 (not before the patching, and not before the settings)

    connection.close_pool()
