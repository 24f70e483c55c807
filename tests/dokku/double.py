"""A Dokku host for the tests: a real sshd whose only command is host.py, a real nginx, containers of Docker.

    with Double(folder, postgres) as double: … HOST=double.host …

`host` is a name that the `ssh` in `double.environ["PATH"]` knows, as it knows ports and keys by ~/.ssh/config.
sshd runs in a mount namespace of its own where /etc/passwd has the user dokku, so that nothing of this machine is
changed; the rest needs root as well: containers, and folders of their users.
"""

from __future__ import annotations

import ipaddress
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, Self

import psycopg

from boiler.settings import ROOT
from tests.docker import docker, engine
from tests.dyno import free_port
from tests.needs import needs, needs_root
from tests.servers import Postgres15
from tests.wait import wait_for

HOST_PROGRAM = Path(__file__).with_name("host.py")
DYNOS = Path(__file__).with_name("dynos.py")
PLUGINS = ["apps", "config", "git", "nginx-vhosts", "ps", "storage"]

SSHD = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
PrintMotd no
LogLevel ERROR
"""
CLIENT = """\
Host localhost
    HostName 127.0.0.1
    Port {port}
    IdentityFile {folder}/key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
"""
NGINX = """\
daemon off;
worker_processes 1;
pid {folder}/nginx/pid;
error_log {folder}/nginx/error.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    {temporary}
    include {folder}/nginx/apps.conf;
}}
"""


class ContainersPostgres(Postgres15):
    """PostgreSQL that containers reach by Docker's bridge, where this machine has the first address."""

    def __init__(self, *, docked: bool) -> None:
        self.bridge = "127.0.0.1"
        if docked:
            subnet = docker("network", "inspect", "bridge", "--format={{(index .IPAM.Config 0).Subnet}}")
            self.bridge = str(next(ipaddress.ip_network(subnet).hosts()))
        super().__init__(listen_addresses=",".join({"127.0.0.1", self.bridge}), max_connections="200")

    def __enter__(self) -> Self:
        super().__enter__()
        with (self.folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all dyno samenet trust\n")
        with psycopg.connect(f"postgresql://super@127.0.0.1:{self.port}/postgres", autocommit=True) as connection:
            connection.execute("select pg_reload_conf()")
        return self


class Double:
    """The host, its state in a folder of its own; it ends with the `with` block, its containers too.

    `docked=False` runs the app in the dyno double instead of under Docker.
    """

    def __init__(self, *, plugins: tuple[str, ...] = ("postgres",), domain: str = "", docked: bool = True) -> None:
        needs_root("runs a Dokku host")
        names = ["sshd", "nginx", "git", "ssh", "xargs", "unshare"]
        self.programs = {name: needs(name) for name in [*names, *(["docker"] if docked else [])]}
        self.docked = docked
        self.plugins = [*PLUGINS, *plugins]
        self.domain = domain
        self.host = "localhost"
        self.folder = Path(tempfile.mkdtemp(prefix="dokku-"))
        self.ssh_port, self.port = free_port(), free_port()
        self._engine = engine() if docked else nullcontext()
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def environ(self) -> dict[str, str]:
        """What a user's environment needs to reach the host by ssh."""
        return {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "HOME": str(self.folder / "home")}

    def __enter__(self) -> Self:
        self._engine.__enter__()
        self.postgres = ContainersPostgres(docked=self.docked)
        self.postgres.__enter__()
        for name in ("apps", "bin", "dynos", "home", "nginx", "storage"):
            (self.folder / name).mkdir()
        self._make_keys()
        self._start_nginx()
        self._start_sshd()
        if self.docked:
            self._start_listener()
        return self

    def _make_keys(self) -> None:
        for name in ("host_key", "key"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
            subprocess.run(words, check=True)
        run = f"{sys.executable} {HOST_PROGRAM} {self.folder}"
        if not self.docked:
            program = self.folder / "dynos" / "docker"
            program.write_text(
                f'#!/bin/sh\nPYTHONPATH={ROOT}:{ROOT}/app exec {sys.executable} {DYNOS} {self.folder} "$@"\n'
            )
            program.chmod(0o755)
            run = f"env PATH={program.parent}:{os.environ['PATH']} {run}"
        forced = f'command="{run}",no-pty,no-port-forwarding'
        (self.folder / "authorized_keys").write_text(f"{forced} {(self.folder / 'key.pub').read_text()}")
        known = (self.folder / "host_key.pub").read_text()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.ssh_port} {known}")
        (self.folder / "ssh_config").write_text(CLIENT.format(port=self.ssh_port, folder=self.folder))
        # ssh looks for its configuration where the account's home is, whatever HOME says.
        program = self.folder / "bin" / "ssh"
        program.write_text(f'#!/bin/sh\nexec {self.programs["ssh"]} -F {self.folder}/ssh_config "$@"\n')
        program.chmod(0o755)

    def _start_sshd(self) -> None:
        root = pwd.getpwuid(0)
        passwd = Path("/etc/passwd").read_text().splitlines()
        passwd = [line for line in passwd if not line.startswith("dokku:")]
        (self.folder / "passwd").write_text("\n".join([*passwd, f"dokku:x:0:0::{root.pw_dir}:/bin/sh", ""]))
        (self.folder / "sshd_config").write_text(SSHD.format(port=self.ssh_port, folder=self.folder))
        script = 'mkdir -p /run/sshd && mount --bind "$1" /etc/passwd && shift && exec "$@"'
        sshd = [self.programs["sshd"], "-D", "-e", "-f", str(self.folder / "sshd_config")]
        command = [self.programs["unshare"], "--mount", "sh", "-c", script, "sh", str(self.folder / "passwd"), *sshd]
        self._start(command, "sshd.log")
        sshd_process = self._processes[-1]

        def answers() -> bool:
            assert sshd_process.poll() is None, self.log("sshd.log")
            return self.ssh("version").returncode == 0

        wait_for(answers, "sshd answers", 30)

    def _start_nginx(self) -> None:
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "\n    ".join(f"{kind}_temp_path {self.folder}/nginx/{kind};" for kind in kinds)
        (self.folder / "nginx" / "apps.conf").write_text("")
        configuration = self.folder / "nginx" / "nginx.conf"
        configuration.write_text(NGINX.format(folder=self.folder, temporary=temporary))
        command = [self.programs["nginx"], "-c", str(configuration), "-e", str(self.folder / "nginx" / "error.log")]
        self._start(command, "nginx.log")
        wait_for((self.folder / "nginx" / "pid").exists, "nginx has started", 30)
        settings: dict[str, Any] = {
            "plugins": self.plugins,
            "domain": self.domain,
            "port": self.port,
            "nginx": command,
            "psql": needs("psql"),
            "postgres": f"postgresql://dyno@{self.postgres.bridge}:{self.postgres.port}",
            "postgres_admin": f"postgresql://super@127.0.0.1:{self.postgres.port}/postgres",
        }
        (self.folder / "host.json").write_text(json.dumps(settings))

    def _start_listener(self) -> None:
        """Do what dokku-event-listener does beside Dokku: nginx finds a container that Docker has started again."""
        label = f"--filter=label=dokku-double={self.folder.name}"
        command = [self.programs["docker"], "events", "--filter=event=start", label, "--format={{.ID}}"]
        listener = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
        self._processes.append(listener)
        assert listener.stdout is not None

        def listen(lines: IO[str]) -> None:
            for line in lines:
                words = [sys.executable, str(HOST_PROGRAM), str(self.folder), "started", line.strip()]
                subprocess.run(words, check=False)

        threading.Thread(target=listen, args=[listener.stdout], daemon=True).start()

    def _start(self, command: list[str], log: str) -> None:
        with (self.folder / log).open("wb") as file:
            self._processes.append(subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL))

    def log(self, name: str) -> str:
        return (self.folder / name).read_text(errors="replace")

    def ssh(self, line: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Send one command as ssh does."""
        return subprocess.run(
            ["ssh", "-T", f"dokku@{self.host}", "--", line],
            input=stdin,
            capture_output=True,
            text=True,
            env={**os.environ, **self.environ},
            timeout=300,
            check=False,
        )

    def commands(self) -> list[str]:
        """All commands that have come since the last look."""
        path = self.folder / "commands.log"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def state(self, app: str) -> dict[str, Any]:
        return json.loads((self.folder / "apps" / app / "state.json").read_text())

    def edit(self, app: str, **changes: Any) -> None:
        """Change the app's state behind everyone's back."""
        path = self.folder / "apps" / app / "state.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    def container(self, app: str) -> str:
        """The id of the web container."""
        return self.state(app)["containers"]["web.1"]

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
            process.wait(30)
        wait_for(self._no_containers, "every container is removed", 60)
        if self.docked:
            self._remove_images()
        self.postgres.__exit__()
        self._engine.__exit__(None, None, None)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _no_containers(self) -> bool:
        """Whether none was left; removes what is. The double's retire() may be removing the same one: look again."""
        program: str | Path = "docker"
        if self.docked:
            left = docker("ps", "--all", "--quiet", f"--filter=label=dokku-double={self.folder.name}").split()
        else:
            program = self.folder / "dynos" / "docker"
            left = [state.parent.name for state in (self.folder / "dynos").glob("*/state")]
        for container in left:
            command = [program, "rm", "--force", "--volumes", container]
            subprocess.run(command, capture_output=True, check=False)
        return not left

    def _remove_images(self) -> None:
        tags = f"--filter=reference=dokku-double/*:{self.folder.name}-*"
        for tag in docker("images", "--format={{.Repository}}:{{.Tag}}", tags).split():
            docker("rmi", "--no-prune", tag)  # the layers stay, for the next build, and so does another double's image
