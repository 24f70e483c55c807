"""A pipe with which one thread wakes another that waits on files."""

from __future__ import annotations

import os
from contextlib import suppress


class Doorbell:
    """Readable while it rings. Any thread may ring it, any number of times."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self.writer, False)
        self._rings = False

    def fileno(self) -> int:
        """What to wait on."""
        return self._reader

    def ring(self) -> None:
        """Wake whoever waits. What the other is to see must have been done before."""
        if not self._rings:
            self._rings = True
            with suppress(BlockingIOError):  # the pipe is full: it rings
                os.write(self.writer, b"\0")

    def silence(self) -> None:
        """Stop the ringing, before looking at what there is to do."""
        with suppress(BlockingIOError):
            os.read(self._reader, 4096)
        # Not before the read: it would take away the byte of a ring in between, and no later ring would write one.
        self._rings = False

    def __del__(self) -> None:
        os.close(self._reader)
        os.close(self.writer)
