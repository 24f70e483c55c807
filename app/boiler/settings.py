"""Every setting of Double Boiler: one documented environment variable each.

The boiler, gunicorn, Celery and Django all read their settings here and nowhere else, so that a
value means the same to each of them. The table in README.md lists the same names; a test compares.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

ROOT = Path(__file__).resolve().parents[2]

# Set by platforms whose disk is thrown away with the dyno. Dokku sets DYNO as well; there a mounted
# folder named by EMBEDDED_POSTGRES is the way to say that the disk stays.
EPHEMERAL_MARKERS = (
    "DYNO",
    "CONTAINER",
    "FLY_APP_NAME",
    "K_SERVICE",
    "RAILWAY_ENVIRONMENT_NAME",
    "RENDER",
    "VCAP_APPLICATION",
)


class SettingError(ValueError):
    """A setting that can't be used; the message is one line: what is wrong, where, what to do."""


def _whole(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if not minimum <= number <= maximum:
            raise ValueError(f"must be a whole number from {minimum} to {maximum}")
        return number

    return parse


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    return parse


def _switch(text: str) -> bool:
    return _one_of("0", "1")(text) == "1"


def _token(text: str) -> str:
    if 0 < len(text) < 32:
        raise ValueError("must have at least 32 characters, which nobody can guess")
    return text


def _names(text: str) -> list[str]:
    return [name for name in (part.strip() for part in text.split(",")) if name]


def _path(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise ValueError("must be one word of letters, digits, _ and -")
    return text


def _url(*schemes: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not text:
            return text
        expected = f"must look like {schemes[0]}://USER:PASSWORD@HOST:PORT/NAME"
        try:
            url = urlsplit(text)
            _ = url.port  # urlsplit finds out that a port is no number only when asked for it
        except ValueError:
            raise ValueError(expected) from None
        if url.scheme not in schemes or not (url.netloc or url.query):
            raise ValueError(expected)
        return text

    return parse


@dataclass(frozen=True)
class Setting:
    """One environment variable: its name, its default as a user would write it, and its meaning."""

    name: str
    default: str
    help: str
    parse: Callable[[str], Any] = str
    secret: bool = False


SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting(
            "DATABASE_URL",
            "",
            "PostgreSQL for the data, the queue and the schedule; without it, an embedded PostgreSQL",
            _url("postgresql", "postgres"),
            secret=True,
        ),
        Setting("EMBEDDED_POSTGRES", "", "folder of the embedded PostgreSQL's data; `.postgres` if unset"),
        Setting("DATABASE_POOL", "", "database connections of one gunicorn worker", _whole(1, 100)),
        Setting("DATABASE_WAIT", "30", "seconds to wait at start for a database that is starting", _whole(0, 3600)),
        Setting(
            "RELEASE_AT_START",
            "0",
            "1 where no release phase comes before the start: the dyno runs Procfile's `release` line itself",
            _switch,
        ),
        Setting(
            "REDIS_URL",
            "",
            "a Redis that carries the queue instead of PostgreSQL",
            _url("redis", "rediss"),
            secret=True,
        ),
        Setting(
            "AMQP_URL",
            "",
            "a RabbitMQ that carries the queue instead of PostgreSQL",
            _url("amqp", "amqps"),
            secret=True,
        ),
        Setting("DJANGO_SECRET_KEY", "", "Django's secret key; at least 50 characters", secret=True),
        Setting("DJANGO_DEBUG", "0", "1 for development: error pages, plain http, any host", _switch),
        Setting(
            "DJANGO_ALLOWED_HOSTS",
            "localhost,127.0.0.1",
            "host names that the app answers to, with commas between",
            _names,
        ),
        Setting("DJANGO_HTTPS", "1", "0 for a host without TLS: no redirect, no secure cookies", _switch),
        Setting("PORT", "5000", "the port that gunicorn listens on", _whole(1, 65535)),
        Setting("BIND_ADDRESS", "0.0.0.0", "the address that gunicorn listens on"),  # noqa: S104 (platforms need it)
        Setting("ADMIN_PATH", "admin", "where Django's admin is", _path),
        Setting("WEB_CONCURRENCY", "", "gunicorn workers", _whole(1, 64)),
        Setting(
            "WEB_WORKER_CLASS",
            "gevent",
            "gunicorn's worker class: gevent, gthread or sync",
            _one_of("gevent", "gthread", "sync"),
        ),
        Setting("WEB_CONNECTIONS", "", "connections that one gevent worker holds", _whole(1, 100000)),
        Setting("WEB_MAX_REQUESTS", "", "requests after which a fresh gunicorn worker takes over", _whole(0, 10**9)),
        Setting(
            "WEB_LINGER", "0", "seconds that the web goes on accepting after SIGTERM, for slow routers", _whole(0, 60)
        ),
        Setting("WEB_THREADS", "8", "threads of one gthread worker", _whole(1, 1000)),
        Setting("WORKER_CONCURRENCY", "", "Celery pool children: jobs that run at once", _whole(1, 1000)),
        Setting(
            "WORKER_CHILD_MEMORY",
            "",
            "MB of a pool child after whose job a fresh one takes over",
            _whole(1, 10**6),
        ),
        Setting(
            "DYNO_RAM", "0", "MB of the dyno, as Heroku says it; a container's own limit is found", _whole(0, 10**7)
        ),
        Setting("DYNO_GRACE", "30", "seconds between the platform's SIGTERM and its SIGKILL", _whole(2, 3600)),
        Setting(
            "STATUS_TOKEN",
            "",
            "bearer token of `/statusz`, by which `make verify` looks into the dyno; made anew at each start if unset",
            _token,
            secret=True,
        ),
        Setting(
            "DYNO_RUNS", "", "lines of LocalProcfile that `boil start` runs, with commas between; all if unset", _names
        ),
        Setting("BOILER_IMAGE", "1", "0 to start every process by itself instead of forking it from an image", _switch),
        Setting(
            "SHARED_IMPORTS",
            "",
            "modules that all images share: heavy libraries that only compute, with commas between",
            _names,
        ),
        Setting("BOILER_DIR", "", "private folder of the status socket; one in the temporary folder if unset"),
        Setting(
            "JOBS_STARTS",
            "5",
            "how often a job is started that kills its worker each time; then it is parked",
            _whole(1, 1000),
        ),
        Setting("JOBS_PER_CALL", "1000", "jobs that one call of POST /jobs may bring", _whole(1, 100000)),
        Setting("JOBS_WAITING", "10000", "jobs that may wait before POST /jobs answers 429", _whole(1, 10**9)),
        Setting("BENCH_PAUSE", "60", "seconds between two benchmarks that visitors may run", _whole(0, 86400)),
        Setting("JOBS_KEPT", "3600", "seconds that finished demo jobs are kept", _whole(1, 10**9)),
        Setting(
            "LOG_LEVEL",
            "warning",
            "what gunicorn, Celery and Django log: debug, info, warning or error",
            _one_of("debug", "info", "warning", "error"),
        ),
    )
}


def get(name: str, environ: Mapping[str, str] | None = None) -> Any:
    """The value of a setting, parsed. An empty variable counts as unset; what it is then may be the plan's.

    Raises SettingError with the reason if the value can't be used; a secret's value is never in it.
    """
    setting = SETTINGS[name]
    text = (os.environ if environ is None else environ).get(name) or setting.default or _planned(name, environ)
    try:
        return setting.parse(text)
    except ValueError as error:
        shown = name if setting.secret else f"{name}={text}"
        raise SettingError(f"{shown}: {error}; correct or unset it") from None


def _planned(name: str, environ: Mapping[str, str] | None) -> str:
    from . import sizing  # noqa: PLC0415 (which reads settings itself)

    return sizing.default(name, environ)


def secret_key(environ: Mapping[str, str] | None = None) -> str:
    """DJANGO_SECRET_KEY. Raises SettingError, with the command that makes one, if it is missing or weak."""
    key = get("DJANGO_SECRET_KEY", environ)
    if len(key) < 50 or len(set(key)) < 5:  # what `manage.py check --deploy` (security.W009) asks for
        fault = "is shorter than 50 characters or has less than 5 different ones" if key else "is not set"
        raise SettingError(
            f"DJANGO_SECRET_KEY {fault}: set it, once, to what this prints: "
            """python3 -c "import secrets; print(secrets.token_urlsafe(50))" """.rstrip()
        )
    return key


def key_fingerprint(key: str) -> str:
    """Eight letters by which two dynos tell whether they have the same secret key; they give nothing of it away."""
    return hmac.new(key.encode(), b"double boiler: fingerprint", hashlib.sha256).hexdigest()[:8]


def runtime_dir(environ: Mapping[str, str] | None = None) -> Path:
    """The private folder of this checkout's sockets: short, because a socket's path has 107 bytes."""
    if chosen := get("BOILER_DIR", environ):
        return Path(chosen).resolve()
    digest = hashlib.sha256(os.fsencode(ROOT)).hexdigest()[:12]
    return Path(tempfile.gettempdir()).resolve() / f"boiler-{os.getuid()}-{digest}"


def embedded_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Where the embedded PostgreSQL keeps its data.

    Raises SettingError on a platform with an ephemeral disk, unless EMBEDDED_POSTGRES names a folder.
    """
    if chosen := get("EMBEDDED_POSTGRES", environ):
        return ROOT / chosen
    for marker in EPHEMERAL_MARKERS:
        if (os.environ if environ is None else environ).get(marker):
            raise SettingError(
                f"DATABASE_URL is not set, and {marker} says that this platform's disk is thrown away: "
                "set DATABASE_URL, or EMBEDDED_POSTGRES=/folder/that/stays"
            )
    return ROOT / ".postgres"


def database_url(environ: Mapping[str, str] | None = None) -> str:
    """DATABASE_URL, or the address of the embedded PostgreSQL's socket."""
    if url := get("DATABASE_URL", environ):
        return url
    embedded_dir(environ)
    return _embedded_url(environ)


def _embedded_url(environ: Mapping[str, str] | None) -> str:
    return f"postgresql://dyno@{quote(str(runtime_dir(environ)), safe='')}/dyno"


def is_embedded(environ: Mapping[str, str] | None = None) -> bool:
    """Whether the database is the embedded PostgreSQL; the boiler tells inner processes so by its address."""
    # Not by get(): a wrong one is for others to complain of.
    url = (os.environ if environ is None else environ).get("DATABASE_URL", "")
    return url in ("", _embedded_url(environ))


def broker(environ: Mapping[str, str] | None = None) -> str:
    """What carries the queue: `amqp`, `redis` or `pgmq`."""
    if get("AMQP_URL", environ):
        return "amqp"
    return "redis" if get("REDIS_URL", environ) else "pgmq"
