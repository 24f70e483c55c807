"""`make provision-dokku` on a Debian in a container: real sshd and firewall, stand-ins for Dokku and for swap."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from boiler.settings import ROOT
from tests.docker import debian_image, docker, engine
from tests.needs import needs
from tests.wait import wait_for

pytestmark = pytest.mark.timeout(900)  # an image of Debian may have to be made first

PACKAGES = "python3,openssh-server,openssl,ca-certificates,iptables,ufw"
SERVER = "dokku.example.com"

# What the playbook fetches from dokku.com, here from the server itself: it installs a `dokku` that keeps its state in
# /var/lib/dokku. Swap in a container would be this machine's, so its commands only note what they were told.
START = r"""
mkdir -p /run/sshd ~/.ssh /srv/install/v0.38.27
echo "$KEY" > ~/.ssh/authorized_keys
cat > /srv/install/v0.38.27/bootstrap.sh <<'END'
useradd --create-home dokku
mkdir -p /home/dokku/.ssh /var/lib/dokku/plugins/available
cat > /usr/bin/dokku <<'DOKKU'
#!/bin/bash
cd /var/lib/dokku
case "$1" in
    domains:report) cat domains ;;
    domains:set-global) echo "$2" > domains ;;
    plugin:install) mkdir "plugins/available/$4" ;;
    ssh-keys:add) echo "NAME=$2 $(cat)" >> /home/dokku/.ssh/authorized_keys ;;
    *) exit 1 ;;
esac
DOKKU
chmod +x /usr/bin/dokku
END
printf '#!/bin/sh\n' > /usr/local/sbin/mkswap
printf '#!/bin/sh\n[ "$1" = /swapfile ] && echo "$1" >> /tmp/swaps\ncat /tmp/swaps\nexit 0\n' > /usr/local/sbin/swapon
chmod +x /usr/local/sbin/*
touch /tmp/swaps
openssl req -x509 -newkey rsa:2048 -nodes -keyout /etc/ssl/tls_key -days 2 \
    -out /usr/local/share/ca-certificates/own.crt -subj /CN=dokku.com -addext subjectAltName=DNS:dokku.com
update-ca-certificates
echo 127.0.0.1 dokku.com >> /etc/hosts
cd /srv && python3 - <<'END' &
import http.server, ssl
server = http.server.HTTPServer(("127.0.0.1", 443), http.server.SimpleHTTPRequestHandler)
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain("/usr/local/share/ca-certificates/own.crt", "/etc/ssl/tls_key")
server.socket = tls.wrap_socket(server.socket, server_side=True)
server.serve_forever()
END
until (: < /dev/tcp/127.0.0.1/443) 2> /dev/null; do sleep 0.1; done
exec /usr/sbin/sshd -D
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A fresh server; the value is the environment of a user whose ssh knows it by name."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    key = home / ".ssh" / "id_ed25519"
    subprocess.run([needs("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    with engine():
        image = debian_image("double-boiler-server:bookworm", PACKAGES)
        given = ["--cap-add=NET_ADMIN", f"--env=KEY={key.with_suffix('.pub').read_text().strip()}"]  # for the firewall
        container = docker("run", "--detach", *given, image, "bash", "-c", START)
        try:
            address = docker("inspect", "--format={{.NetworkSettings.IPAddress}}", container)
            known = home / ".ssh" / "known_hosts"

            def answers() -> bool:
                scanned = subprocess.run(["ssh-keyscan", address], capture_output=True, text=True, check=False).stdout
                known.write_text(scanned.replace(address, SERVER))
                return bool(scanned)

            wait_for(answers, "sshd answers", 60)
            program = tmp_path / "bin" / "ssh"
            program.parent.mkdir()
            options = f"-o HostName={address} -o HostKeyAlias={SERVER} -o UserKnownHostsFile={known} -i {key}"
            program.write_text(f'#!/bin/sh\nexec {needs("ssh")} {options} "$@"\n')
            program.chmod(0o755)
            path = f"{program.parent}:{os.environ['PATH']}"
            yield {"HOME": str(home), "PATH": path, "LANG": "C.UTF-8", "CONTAINER": container}
        finally:
            docker("rm", "--force", container)


def provision(environ: dict[str, str], *words: str) -> int:
    """Run `make provision-dokku`, which must succeed; returns how many steps have changed something."""
    command = ["make", "provision-dokku", f"HOST=root@{SERVER}", *words]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (changed,) = re.findall(r"changed=(\d+)", done.stdout)
    return int(changed)


def test_a_fresh_debian_becomes_a_dokku_host_and_the_second_time_nothing_changes(server: dict[str, str]) -> None:
    def says(*words: str) -> str:
        return docker("exec", server["CONTAINER"], *words)

    assert provision(server, "CHECK=1") > 0
    assert says("sh", "-c", "ls /usr/bin/dokku /swapfile 2>&1 || true").count("No such file") == 2
    provision(server)
    assert says("cat", "/var/lib/dokku/domains") == SERVER
    assert (Path(server["HOME"]) / ".ssh" / "id_ed25519.pub").read_text().split()[1] in says(
        "cat", "/home/dokku/.ssh/authorized_keys"
    )
    allowed = re.findall(r"^(\S+) +ALLOW", says("ufw", "status"), re.MULTILINE)
    assert set(allowed) == {"22/tcp", "80/tcp", "443/tcp"}
    assert says("stat", "--format=%a", "/swapfile") == "600"
    assert "/swapfile none swap" in says("cat", "/etc/fstab")
    assert provision(server) == 0
