"""Dynos and the router before them.

From Heroku's documentation (dynos, http-routing): a dyno gets $PORT and $DYNO; stopping is SIGTERM to every process
and SIGKILL 30 s later; after a release the old dynos stop while the new ones start; the router holds requests until
a web dyno listens, and says in X-Forwarded-Proto how the client came: here as if by https.
Not imitated: that a crashed dyno is started again, and the 60 s within which a web dyno must listen.
"""

from __future__ import annotations

import http.client
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.dyno import free_port
from tests.heroku import slug
from tests.platform import HEROKU, Container, Ending, Limits

# Bytes of memory, by the size's name in the API.
SIZES = {
    "eco": 512,
    "basic": 512,
    "standard-1x": 512,
    "standard-2x": 1024,
    "performance-m": 2560,
    "performance-l": 14336,
}
HELD = 60.0  # seconds that the router waits for a dyno
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}


class Dyno:
    """One dyno: a command of a slug with an app's config, its output appended to `log`."""

    def __init__(self, name: str, command: str, folder: Path, config: dict[str, str], *, size: str, log: Path) -> None:
        self.name = name
        self.kind = name.partition(".")[0]
        self.command = command
        self.size = size
        self.version = 0
        self.port = free_port()
        self.stopping = False
        # A dyno has a file system of its own; here the slug is shared, and only what is temporary is not.
        self.folder = Path(tempfile.mkdtemp(prefix="heroku-"))
        memory = SIZES[size] * 2**20
        environ = {
            **slug.environ(folder),
            **slug.web_concurrency(memory, config),
            "TMPDIR": str(self.folder),
            "BIND_ADDRESS": "127.0.0.1",  # a real dyno is alone in its network
            **config,
            "PORT": str(self.port),
            "DYNO": name,
        }
        with log.open("ab") as output:
            self.container = Container.start(
                ["/bin/bash", "-c", f"exec {command}"],
                HEROKU,
                port=self.port,
                environ=environ,
                cwd=folder,
                log=output,
                limits=Limits(memory=memory),
            )

    @property
    def state(self) -> str:
        """As the API has it."""
        if self.container.process.poll() is not None:
            return "down" if self.stopping else "crashed"
        return "up" if self.kind != "web" or listens(self.port) else "starting"

    def stop(self) -> Ending:
        """As at every restart; takes until the dyno has ended."""
        self.stopping = True
        ending = self.container.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        return ending

    def close(self) -> None:
        """End it at once."""
        self.stopping = True
        self.container.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Router(ThreadingHTTPServer):
    """Passes an app's requests to one of the ports that `ports` names at that moment."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, ports: Callable[[], list[int]]) -> None:
        self.ports = ports
        super().__init__(("127.0.0.1", 0), _Forward)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        threading.Thread(target=self.serve_forever, args=[0.05], daemon=True).start()


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Router

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        headers |= {"X-Forwarded-Proto": "https", "Connection": "close"}
        deadline = time.monotonic() + HELD
        while time.monotonic() < deadline:
            for port in self.server.ports():
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HELD)
                try:
                    connection.connect()
                except OSError:
                    continue  # it has just stopped listening: another one, or the next
                self._pass_on(connection, body, headers)
                return
            time.sleep(0.05)
        self._answer(503, b"no web dyno (H10, H14 or H99)", [])

    do_GET = do_POST = do_HEAD = do_PUT = do_DELETE = do_PATCH = _forward  # noqa: N815

    def _pass_on(self, connection: http.client.HTTPConnection, body: bytes, headers: dict[str, str]) -> None:
        try:
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._answer(503, f"H13 connection closed without response: {error}".encode(), [])
            return
        finally:
            connection.close()
        kept = [one for one in response.getheaders() if one[0].lower() not in {*HOP_BY_HOP, "content-length"}]
        self._answer(response.status, content, kept)

    def _answer(self, status: int, content: bytes, headers: list[tuple[str, str]]) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            with suppress(OSError):
                self.wfile.write(content)
