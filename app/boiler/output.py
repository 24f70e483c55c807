"""The dyno's log: lines of all inner processes on one stream, each behind its process's name.

honcho's printer is not used for this: it splits lines at every Unicode line break, replaces bytes
that are not UTF-8, and blocks its caller for as long as the log's reader is slow.
"""

from __future__ import annotations

import os
import selectors
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

from honcho.colour import get_colours

# A pipe that select() calls writable takes this many bytes without blocking (POSIX: PIPE_BUF).
CHUNK = 4096
# With this much unread (bytes), nothing more is taken from the inner processes: they wait, not the boiler.
FULL = 1 << 20
# A "line" that grows beyond this (bytes) is passed on in pieces, so that it can't fill the memory.
LONGEST_LINE = 16 << 20


class LineBuffer:
    """Bytes of one process, put together to whole lines."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the lines that `data` completes, without their newline."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            yield b"".join([*self._parts, line])
            self._parts, self._size = [], 0
        if rest:
            self._parts.append(rest)
            self._size += len(rest)
        if self._size > LONGEST_LINE:
            yield from self.finish()

    def finish(self) -> Iterator[bytes]:
        """Yield what is left when the process has closed its output without a final newline."""
        if self._parts:
            yield b"".join(self._parts)
            self._parts, self._size = [], 0


class Output:
    """Writes to a file descriptor whenever that takes more, never waiting for it."""

    def __init__(self, fd: int, names: list[str]) -> None:
        self.fd = fd
        self.gone = False
        self._queue: deque[memoryview] = deque()
        self.size = 0
        self._width = max(map(len, names))
        colours = get_colours()
        self._colours = {name: next(colours) for name in names} if os.isatty(fd) else {}

    def line(self, name: str, text: bytes) -> None:
        """Queue one line of the process `name`, with the time before it as honcho has it."""
        prefix = f"{time.strftime('%H:%M:%S')} {name.ljust(self._width)} | "
        if colour := self._colours.get(name):
            prefix = f"\033[0m\033[{colour}m{prefix}\033[0m"
        if not self.gone:
            data = prefix.encode() + text.rstrip(b"\r") + b"\n"
            self._queue.append(memoryview(data))
            self.size += len(data)

    @property
    def full(self) -> bool:
        return self.size >= FULL

    def write_some(self) -> None:
        """Write one chunk; to be called when the descriptor takes one."""
        chunk: list[memoryview] = []
        room = CHUNK
        for data in self._queue:
            chunk.append(data[:room])
            room -= len(chunk[-1])
            if not room:
                break
        try:
            written = os.writev(self.fd, chunk)
        except BlockingIOError:
            return  # someone has made the descriptor non-blocking: the next event comes
        except OSError:  # the reader is gone: the dyno goes on without a log
            self.gone = True
            self._queue.clear()
            self.size = 0
            return
        self.size -= written
        while written and written >= len(self._queue[0]):
            written -= len(self._queue.popleft())
        if written:
            self._queue[0] = self._queue[0][written:]

    def flush(self, seconds: float) -> None:
        """Write all that is queued, for at most `seconds`: a reader that hangs does not keep the dyno."""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            with suppress(PermissionError):  # a regular file is always ready, and epoll takes none
                selector.register(self.fd, selectors.EVENT_WRITE)
            while self._queue:
                left = deadline - time.monotonic()
                if left <= 0 or (selector.get_map() and not selector.select(left)):
                    return
                self.write_some()
