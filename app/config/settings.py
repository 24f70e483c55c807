"""Django's settings. What differs between deployments comes from the environment: boiler/settings.py."""

from __future__ import annotations

import os
import ssl
import sys
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import dj_database_url

from boiler.settings import ROOT, SettingError, broker, database_url, get, key_fingerprint, secret_key

BASE_DIR = ROOT / "app"

# Platforms collect the static files in a build that has neither the secrets nor the database.
COLLECTING = sys.argv[1:2] == ["collectstatic"]

# gunicorn.py sets BOILER_WEB before it loads the app; the boiler sets BOILER_PROCESS for every inner process.
WEB = "BOILER_WEB" in os.environ

# Celery's gevent pool runs each job in a new greenlet, which would leave its connection to the garbage collector.
GREENLETS = "gevent.monkey" in sys.modules and sys.modules["gevent.monkey"].is_module_patched("socket")
POOLED = WEB or GREENLETS

POSTGRES_OPTIONS: dict[str, Any] = {
    "connect_timeout": 5,
    # A database host that vanished without a word is noticed after 10 + 3 x 5 s instead of two hours.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,  # ms; the same for a connection with unsent data
}


def application_name() -> str:
    """What this process is called in pg_stat_activity, and whether all dynos have the same secret key."""
    command = next((word for word in sys.argv[1:] if word in ("worker", "beat")), "manage")
    process = os.environ.get("BOILER_PROCESS") or ("web" if WEB else command)
    return f"{process} {key_fingerprint(SECRET_KEY)}"


def database(url: str) -> dict[str, Any]:
    """DATABASES["default"] for this process; what the URL's query says goes before our options."""
    config: dict[str, Any] = {**dj_database_url.parse(url)}
    options = {"application_name": application_name(), **POSTGRES_OPTIONS, **config.get("OPTIONS", {})}
    if not POOLED:
        return {**config, "OPTIONS": options, "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True}
    # gevent's greenlets and gthread's threads would each hold a connection of their own: 73 were
    # counted at 32 clients. Few shared ones also go faster.
    size = get("DATABASE_POOL" if WEB else "WORKER_CONCURRENCY")
    options["pool"] = {"min_size": 1, "max_size": size, "timeout": 10, "reconnect_timeout": 2}
    return {**config, "OPTIONS": options, "CONN_MAX_AGE": 0, "CONN_HEALTH_CHECKS": True}


try:
    DEBUG = get("DJANGO_DEBUG")
    HTTPS = get("DJANGO_HTTPS") and not DEBUG
    LOG_LEVEL = get("LOG_LEVEL").upper()
    ALLOWED_HOSTS = ["*"] if DEBUG else get("DJANGO_ALLOWED_HOSTS")
    SECRET_KEY = "only to collect static files" if COLLECTING else secret_key()
    APPLICATION_NAME = application_name()
    DATABASES = {} if COLLECTING else {"default": database(database_url())}
    BROKER = broker()
    BROKER_URL = {"amqp": get("AMQP_URL"), "redis": get("REDIS_URL"), "pgmq": "pgmq://database"}[BROKER]
    CELERY_WORKER_CONCURRENCY = get("WORKER_CONCURRENCY")
    CELERY_WORKER_MAX_MEMORY_PER_CHILD = get("WORKER_CHILD_MEMORY") * 1024  # KB
except SettingError as error:
    raise SystemExit(f"error: {error}") from None

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "axes",
    "django_celery_beat",
    "jobs",
    "demo",
]
MIDDLEWARE = [
    # First: a platform's health check comes by plain http and with a host name of its own.
    "jobs.health.HealthMiddleware",
    "jobs.statusz.StatusMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "config.operator.AdminSessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "config.operator.AdminAuthenticationMiddleware",
    "config.operator.AdminMessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",
]
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"

# --- https: the platform's router ends TLS and says so in X-Forwarded-Proto ---
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
# W005, W021: whether HSTS holds for the subdomains too, and for good, is for the owner of the domain to say.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]

# --- the operator's login ---
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("MinimumLengthValidator", "CommonPasswordValidator", "NumericPasswordValidator")
]
# By address and not by name: a stranger who knows the operator's name must not be able to lock the operator out.
AXES_LOCKOUT_PARAMETERS = ["ip_address"]
AXES_CLIENT_IP_CALLABLE = "config.operator.client_address"
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_RESET_ON_SUCCESS = True
AXES_DISABLE_ACCESS_LOG = True
AXES_VERBOSE = False

# --- static files ---
STATIC_URL = "static/"
STATIC_FILES = BASE_DIR / "staticfiles"
# In development, and where nobody ran collectstatic, whitenoise serves the apps' own folders.
COLLECTED = COLLECTING or (not DEBUG and (STATIC_FILES / "staticfiles.json").is_file())
STATIC_ROOT = STATIC_FILES if COLLECTED else None
WHITENOISE_USE_FINDERS = not COLLECTED
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "config.static.StaticStorage"
        if COLLECTED
        else "django.contrib.staticfiles.storage.StaticFilesStorage"
    },
}

# --- logs: one line a record, to stderr; gunicorn's and Celery's as well ---
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"()": "jobs.logs.LineFormatter", "fmt": "%(levelname)s [%(process)d] %(name)s: %(message)s"}
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": LOG_LEVEL},
    "loggers": {
        "django": {"handlers": [], "level": LOG_LEVEL},
        "gunicorn.error": {"handlers": ["stderr"], "level": LOG_LEVEL, "propagate": False},
    },
}

# --- Celery ---
CELERY_BROKER_URL = BROKER_URL
CELERY_TASK_SERIALIZER = CELERY_RESULT_SERIALIZER = CELERY_EVENT_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_ACKS_LATE = CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_RESULT_EXPIRES = None  # with no results kept, beat has none to clean up
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_WORKER_SEND_TASK_EVENTS = False
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None  # for ever: the supervisor can do no more than start it again
# AMQP gives a job to another worker as soon as the connection is lost: better stop it here than have it
# run twice at once. Over pgmq a job outlives the connection: jobs/courier.py.
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = True
CELERY_BEAT_SCHEDULER = "jobs.beat:LeaderScheduler"
CELERY_BEAT_MAX_LOOP_INTERVAL = 5  # seconds
CELERY_TIMEZONE = TIME_ZONE
if not POOLED:
    # Celery closes the database connection around every task, 2-10 ms a job, unless this is set.
    CELERY_DB_REUSE_MAX = 1_000_000_000
if BROKER == "pgmq":
    # A publisher is nothing but Django's connection: there is none to pool, and a bounded pool of them
    # would deadlock with the bounded pool of connections. Nor can a failed INSERT be retried in its transaction.
    CELERY_BROKER_POOL_LIMIT = 0
    CELERY_TASK_PUBLISH_RETRY = False
if BROKER == "redis":
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "socket_timeout": 30,
        "socket_connect_timeout": 5,
        # The lease of a job, and how often workers look for ended ones (seconds): jobs/lease.py renews it.
        "visibility_timeout": 15,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
    }
    if urlsplit(BROKER_URL).scheme == "rediss" and "ssl_cert_reqs" not in parse_qs(urlsplit(BROKER_URL).query):
        # Heroku Key-Value Store's certificates are self-signed.
        CELERY_BROKER_USE_SSL = {"ssl_cert_reqs": ssl.CERT_NONE}
