"""Relays TCP connections on a port to another socket: `relay.py PORT SOCKET [MILLISECONDS]`.

SOCKET is a unix socket's path or a TCP port on this machine. MILLISECONDS is the round trip that the relay adds: what
a client sends is held back for so long.
"""

from __future__ import annotations

import asyncio
import selectors
import sys


class End(asyncio.Protocol):
    """One end of a relayed connection: passes what it receives on to the other end, after `delay` seconds."""

    def __init__(self, delay: float, other: End | None = None) -> None:
        self._delay = delay
        self.other = other
        self.transport: asyncio.Transport | None = None
        self._waiting: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        for data in self._waiting:
            transport.write(data)
        if self.other is None:
            self.other = End(0, self)
            asyncio.ensure_future(self._reach_out(self.other))  # noqa: RUF006 (it ends with the connection)

    async def _reach_out(self, other: End) -> None:
        loop = asyncio.get_running_loop()
        target = sys.argv[2]
        try:
            if target.isdecimal():
                await loop.create_connection(lambda: other, "127.0.0.1", int(target))
            else:
                await loop.create_unix_connection(lambda: other, target)
        except OSError:
            self.transport.close()

    def write(self, data: bytes) -> None:
        if self.transport is None:
            self._waiting.append(data)
        elif not self.transport.is_closing():
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, self.other.write, data)
        else:
            self.other.write(data)

    def connection_lost(self, _error: Exception | None) -> None:
        if self.other and self.other.transport:
            asyncio.get_running_loop().call_later(self._delay, self.other.transport.close)


async def main() -> None:
    delay = float(sys.argv[3]) / 1000 if len(sys.argv) > 3 else 0.0
    server = await asyncio.get_running_loop().create_server(lambda: End(delay), "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


# Its timeouts are exact to the microsecond, epoll's to the millisecond.
with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
    runner.run(main())
