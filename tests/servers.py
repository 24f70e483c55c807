"""Throwaway servers for the tests: a PostgreSQL of the system's, Redis, RabbitMQ."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.dyno import free_port
from tests.needs import needs
from tests.wait import wait_for


def _as(user: str, argv: list[str]) -> list[str]:
    """The command as another user if this one is root, which none of the servers likes to be."""
    if os.geteuid() != 0:
        return argv
    return ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "--", *argv]


@contextmanager
def _folder(user: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="boiler-server-"))
    if os.geteuid() == 0 and user != "root":
        shutil.chown(folder, user, user)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(argv: list[str], environ: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        argv, env={**os.environ, **(environ or {})}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def postgres15(**settings: str) -> Iterator[str]:
    """PostgreSQL 15 over TCP; yields the URL of an empty database whose owner is no superuser."""
    binaries = Path(needs("initdb")).resolve().parent
    port = free_port()
    with _folder("postgres") as folder:
        data = folder / "data"
        made = [str(binaries / "initdb"), "-D", str(data), "-U", "super", "--auth=trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(_as("postgres", made), check=True, capture_output=True)
        values = {"port": str(port), "unix_socket_directories": str(folder), "fsync": "off", **settings}
        options = [f"-c{name}={value}" for name, value in values.items()]
        with _running(_as("postgres", [str(binaries / "postgres"), "-D", str(data), *options])):

            def connected() -> psycopg.Connection | None:
                try:
                    return psycopg.connect(f"postgresql://super@127.0.0.1:{port}/postgres", autocommit=True)
                except psycopg.OperationalError:
                    return None

            with wait_for(connected, "PostgreSQL takes connections") as connection:
                connection.execute("create role dyno login")
                connection.execute("create database dyno owner dyno")
            yield f"postgresql://dyno@127.0.0.1:{port}/dyno"


@contextmanager
def redis() -> Iterator[str]:
    """Redis; yields its URL."""
    program = needs("redis-server")
    port = free_port()
    with _running([program, "--port", str(port), "--save", "", "--appendonly", "no"]):
        ping = ["redis-cli", "-p", str(port), "ping"]
        wait_for(lambda: b"PONG" in subprocess.run(ping, capture_output=True, check=False).stdout, "Redis answers")
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def rabbitmq() -> Iterator[str]:
    """RabbitMQ; yields its URL. It takes some ten seconds to start."""
    needs("rabbitmq-server")
    # Not Debian's wrapper, which becomes the user rabbitmq: where /proc is for root alone, RabbitMQ
    # does not start as anybody else.
    program = "/usr/lib/rabbitmq/bin/rabbitmq-server"
    port = free_port()
    with _folder("root") as folder:
        environ = {
            "HOME": str(folder),
            "RABBITMQ_BASE": str(folder),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_NODENAME": f"boiler{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_START_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(free_port()),
        }
        try:
            with _running([program], environ):
                wait_for(lambda: _speaks_amqp(port), "RabbitMQ takes connections", 90)
                yield f"amqp://guest:guest@127.0.0.1:{port}//"
        finally:  # Erlang's name server is a daemon of its own, which RabbitMQ leaves behind
            subprocess.run(["epmd", "-kill"], env={**os.environ, **environ}, capture_output=True, check=False)


def _speaks_amqp(port: int) -> bool:
    import amqp  # noqa: PLC0415 (one of the servers' clients, needed here alone)

    try:
        with amqp.Connection(f"127.0.0.1:{port}", userid="guest", password="guest", connect_timeout=5):
            return True
    except (OSError, amqp.AMQPError):
        return False
