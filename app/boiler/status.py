"""The status socket: one JSON line asked, one JSON line answered.

It lies in a folder of mode 0700, so that only the dyno's own user gets at it.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

LONGEST_REQUEST = 64 << 10


class RuntimeDirError(RuntimeError):
    """The folder of the socket can't be used; the message is one line."""


def make_private(folder: Path) -> None:
    """Make the folder of the sockets, mode 0700, or make sure that nobody else can get into it.

    Raises RuntimeDirError: in a shared temporary folder somebody else may have made it first.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise RuntimeDirError(f"{folder}: {error.strerror}: set BOILER_DIR to a folder of your own") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise RuntimeDirError(f"{folder}: belongs to somebody else: set BOILER_DIR to a folder of your own")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    if len(os.fsencode(folder)) > 80:  # a socket's path has 107 bytes (unix(7)), PostgreSQL's name takes 18
        raise RuntimeDirError(f"{folder}: too long for a socket, 80 bytes at most: set BOILER_DIR to a shorter one")


def ask(path: Path, request: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Send one request to the boiler at `path` and return its answer, within `timeout` seconds a step.

    Raises OSError when nobody answers.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        client.connect(os.fspath(path))
        client.sendall(json.dumps(request).encode() + b"\n")
        answer = b""
        while data := client.recv(65536):
            answer += data
    try:
        return json.loads(answer)
    except ValueError:
        raise ConnectionError(f"{path}: the boiler's answer was cut off") from None


class Server:
    """Answers requests from within the supervisor's loop."""

    def __init__(
        self, path: Path, selector: selectors.BaseSelector, answer: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        self._path = path
        self._selector = selector
        self._answer = answer
        path.unlink(missing_ok=True)  # left by a boiler that was killed; the lock says that none runs
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.bind(os.fspath(path))
        self._socket.listen(64)
        selector.register(self._socket, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            client, _ = self._socket.accept()
            client.setblocking(False)
            received = bytearray()
            self._selector.register(client, selectors.EVENT_READ, lambda: self._read(client, received))

    def _read(self, client: socket.socket, received: bytearray) -> None:
        try:
            data = client.recv(4096)
        except OSError:
            data = b""
        received += data
        if data and b"\n" not in data and len(received) < LONGEST_REQUEST:
            return
        self._selector.unregister(client)
        with client, suppress(OSError):
            client.sendall(json.dumps(self._respond(bytes(received))).encode() + b"\n")

    def _respond(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except ValueError:
            request = None
        if not isinstance(request, dict):
            return {"error": "a request is one line with a JSON object"}
        return self._answer(request)

    def close(self) -> None:
        self._selector.unregister(self._socket)
        self._socket.close()
        self._path.unlink(missing_ok=True)
