"""Lines that a module shows while it is at work: a build's output, what is being waited for."""

from __future__ import annotations

import os
import socket
from types import TracebackType
from typing import Self


class Live:
    """`with Live() as live: live.line("…")`; the callback plugin `checklist` prints the lines."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        if path := os.environ.get("DEPLOY_LIVE"):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(path)

    def line(self, text: str) -> None:
        """Show one line now."""
        self.write(text.rstrip("\n").encode() + b"\n")

    def write(self, piece: bytes) -> None:
        """Show a piece of text in UTF-8, which may end in the middle of a line or a character."""
        if self._socket:
            self._socket.sendall(piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until all lines are printed, so that the module's result comes after them."""
        if self._socket:
            with self._socket:
                self._socket.shutdown(socket.SHUT_WR)
                self._socket.recv(1)
