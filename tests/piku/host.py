"""Starts the double of a Piku host on this machine's loopback, with this machine's user as its account."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.dyno import free_port
from tests.needs import needs
from tests.platform import PIKU, Container
from tests.wait import wait_for

# What a user has in ~/.ssh/config; `bin` has ssh and scp that read it.
CLIENT = """
Host {name}
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {folder}/key
    StrictHostKeyChecking no
    UserKnownHostsFile {folder}/known-hosts
    LogLevel ERROR
"""
SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host-key
AuthorizedKeysFile {folder}/authorized-keys
StrictModes no
UsePAM no
PasswordAuthentication no
PidFile none
LogLevel ERROR
"""
# Piku's own settings of the uWSGI that starts one more for each process of an app.
EMPEROR = """
[uwsgi]
chdir = {root}
emperor = {root}/uwsgi-enabled
logto = {folder}/uwsgi.log
"""


class Host:
    """A host called `name`. `root` is the folder that Piku has in its account's home.

    With `bin` first on PATH, ssh, scp and git find the host.
    """

    def __init__(self) -> None:
        sshd, uwsgi = needs("sshd"), needs("uwsgi-core")
        self.folder = Path(tempfile.mkdtemp(prefix="piku-"))
        self.folder.chmod(0o755)  # as homes are; root's embedded PostgreSQL runs as nobody
        self.root = self.folder / ".piku"
        for name in ("apps", "envs", "repos", "data", "logs", "uwsgi-enabled"):
            (self.root / name).mkdir(parents=True)
        self.port = free_port()
        self.user = getpass.getuser()
        self.name = f"{self.user}@piku.example"
        for key in ("key", "host-key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key)]
            subprocess.run(command, check=True)
        self._write_access()
        self._write_client()
        (self.folder / "sshd").write_text(SSHD.format(port=self.port, folder=self.folder))
        (self.folder / "uwsgi.ini").write_text(EMPEROR.format(root=self.root, folder=self.folder))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # OpenSSH's server does not start without it
        self._log = (self.folder / "log").open("wb")
        self._sshd = subprocess.Popen([sshd, "-D", "-e", "-f", str(self.folder / "sshd")], stderr=self._log)
        command = [uwsgi, str(self.folder / "uwsgi.ini")]
        self.container = Container.start(command, PIKU, port=0, environ={"PATH": os.environ["PATH"]}, log=self._log)
        wait_for(self._answers, "Piku answers over ssh")

    def _write_access(self) -> None:
        """One command, whatever is asked: as Piku has it, its words split and expanded by a shell."""
        environ = {"PIKU_ROOT": self.root, "PIKU_PACKAGES": sys.prefix, "HOME": self.folder, "PATH": os.environ["PATH"]}
        words = " ".join(f"{name}={value}" for name, value in environ.items())
        command = f"env {words} {sys.executable} {Path(__file__).with_name('command.py')} $SSH_ORIGINAL_COMMAND"
        public = (self.folder / "key.pub").read_text()
        (self.folder / "authorized-keys").write_text(f'command="{command}",no-port-forwarding {public}')

    def _write_client(self) -> None:
        config = CLIENT.format(name=self.name.partition("@")[2], port=self.port, user=self.user, folder=self.folder)
        (self.folder / "ssh-config").write_text(config)
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        for program in ("ssh", "scp"):
            script = f'#!/bin/sh\nexec {needs(program)} -F {self.folder}/ssh-config "$@"\n'
            (self.bin / program).write_text(script)
            (self.bin / program).chmod(0o755)

    def ssh(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Type a command, as an administrator would."""
        command = [str(self.bin / "ssh"), self.name, *words]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
        )

    def _answers(self) -> bool:
        assert self._sshd.poll() is None, self.log()
        return self.ssh("apps").returncode == 0

    def log(self) -> str:
        """What sshd, uWSGI and the apps have written."""
        files = [self.folder / "log", self.folder / "uwsgi.log", *sorted(self.root.glob("logs/*/*"))]
        return "\n".join(f"== {path}\n{path.read_text(errors='replace')[-20000:]}" for path in files if path.exists())

    def commands(self) -> list[str]:
        """The words of every command that came, the hooks' included."""
        path = self.root / "commands"
        return path.read_text().splitlines() if path.exists() else []

    def close(self) -> None:
        """End every process and remove the folder."""
        self.container.close()
        self._sshd.terminate()
        self._sshd.wait(20)
        self._log.close()
        with suppress(FileNotFoundError):
            shutil.rmtree(self.folder)
