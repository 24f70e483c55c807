"""Throwaway servers for the tests: a PostgreSQL of the system's, Redis, RabbitMQ.

Each is a context manager, takes connections inside the `with` block, and can be stopped and started again
there with its data kept: `with Redis() as redis: … redis.url …`
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import amqp
import psycopg

from tests.dyno import free_port
from tests.needs import needs
from tests.wait import wait_for


class Server:
    """What the servers have in common: a port, a folder, and a process in the foreground."""

    name = ""
    user = "root"  # as whom root starts it
    stop_signal = signal.SIGTERM

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="boiler-server-"))
        if os.geteuid() == 0 and self.user != "root":
            shutil.chown(self.folder, self.user, self.user)
        self.environ = dict(os.environ)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def ready(self) -> bool:
        raise NotImplementedError

    def as_user(self, argv: list[str]) -> list[str]:
        if os.geteuid() != 0 or self.user == "root":
            return argv
        return ["setpriv", "--reuid", self.user, "--regid", self.user, "--init-groups", "--", *argv]

    def start(self) -> None:
        self._process = subprocess.Popen(
            self.as_user(self.command()), env=self.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(self.ready, f"{self.name} takes connections", 90)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(self.stop_signal)
            self._process.wait(60)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Postgres15(Server):
    """PostgreSQL 15 over TCP, with an empty database whose owner is no superuser."""

    name = "PostgreSQL"
    user = "postgres"
    stop_signal = signal.SIGINT  # clients are cut off instead of waited for

    def __init__(self, **settings: str) -> None:
        self.binaries = Path(needs("initdb")).resolve().parent
        super().__init__()
        self.settings = settings

    @property
    def url(self) -> str:
        return f"postgresql://dyno@127.0.0.1:{self.port}/dyno"

    def command(self) -> list[str]:
        values = {"port": str(self.port), "unix_socket_directories": str(self.folder), "fsync": "off", **self.settings}
        options = [f"-c{name}={value}" for name, value in values.items()]
        return [str(self.binaries / "postgres"), "-D", str(self.folder / "data"), *options]

    def ready(self) -> bool:
        try:
            psycopg.connect(f"postgresql://super@127.0.0.1:{self.port}/postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def __enter__(self) -> Self:
        made = [str(self.binaries / "initdb"), "-D", str(self.folder / "data"), "-U", "super"]
        made += ["--auth=trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(self.as_user(made), check=True, capture_output=True)
        self.start()
        with psycopg.connect(f"postgresql://super@127.0.0.1:{self.port}/postgres", autocommit=True) as connection:
            connection.execute("create role dyno login")
            connection.execute("create database dyno owner dyno")
        return self


class Redis(Server):
    """Redis, which writes its data to disk when it is stopped."""

    name = "Redis"

    def __init__(self) -> None:
        self.program = needs("redis-server")
        super().__init__()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        return [self.program, "--port", str(self.port), "--dir", str(self.folder), "--save", "3600", "1"]

    def ready(self) -> bool:
        ping = ["redis-cli", "-p", str(self.port), "ping"]
        return b"PONG" in subprocess.run(ping, capture_output=True, check=False).stdout


class RabbitMQ(Server):
    """RabbitMQ; it takes some ten seconds to start."""

    name = "RabbitMQ"

    def __init__(self) -> None:
        needs("rabbitmq-server")
        super().__init__()
        self.environ |= {
            "HOME": str(self.folder),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_NODENAME": f"boiler{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_START_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(free_port()),
        }

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def command(self) -> list[str]:
        # Not Debian's wrapper, which becomes the user rabbitmq: where /proc is for root alone, RabbitMQ
        # does not start as anybody else.
        return ["/usr/lib/rabbitmq/bin/rabbitmq-server"]

    def ready(self) -> bool:
        try:
            with amqp.Connection(f"127.0.0.1:{self.port}", userid="guest", password="guest", connect_timeout=5):
                return True
        except (OSError, amqp.AMQPError):
            return False

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        # Erlang's name server is a daemon of its own, which RabbitMQ leaves behind.
        subprocess.run(["epmd", "-kill"], env=self.environ, capture_output=True, check=False)
