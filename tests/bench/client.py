"""A load of HTTP requests: as many connections as wanted, each sending its next request when the last is answered.

Well-known HTTP clients for Python make some 1,500 to 3,000 requests a second on one core; a dyno answers more. This
one makes 10,000, because it reads nothing of an answer but its status, its length and whether the connection stays.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

PATIENCE = 30.0  # seconds for one answer

Answer = tuple[int, bytes]  # status and body


class BrokenAnswerError(OSError):
    """The connection ended before the answer was whole."""


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of all do not exceed (nearest rank); NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


@dataclass
class Sample:
    """What a load of requests came to: how many a second of each status, and how long each took; in seconds."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0

    @property
    def rate(self) -> float:
        """Answered requests a second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def milliseconds(self, percent: float) -> float:
        """A percentile of the latencies, in milliseconds."""
        return percentile(self.latencies, percent) * 1000


class _Stream(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self.open = True
        self._received = bytearray()
        self._answer: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self, request: bytes) -> asyncio.Future[Answer]:
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        self.open = False
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if b"\r\n\r\n" not in self._received or self._answer is None or self._answer.done():
            return
        head, _, body = bytes(self._received).partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        fields = dict(line.split(b":", 1) for line in lines[1:])
        length = fields.get(b"content-length")
        if length is None:
            self._answer.set_exception(BrokenAnswerError("an answer without Content-Length"))
            return
        if len(body) < int(length):
            return
        self._received.clear()
        if b"close" in fields.get(b"connection", b""):
            self.close()
        self._answer.set_result((int(lines[0].split()[1]), body))

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(BrokenAnswerError(str(error or "the server closed the connection")))


class Client:
    """Requests to one server, over one connection as long as the server keeps it; `headers` go with each."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(url)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._secure else 80)
        fields = {"Host": parts.netloc, "Connection": "keep-alive", **(headers or {})}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._stream: _Stream | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        """One request. Raises OSError (TimeoutError after PATIENCE seconds) when there is no whole answer."""
        async with asyncio.timeout(PATIENCE):
            if self._stream is None or not self._stream.open:
                self._stream = await self._connect()
            length = f"Content-Length: {len(body)}\r\nContent-Type: application/json\r\n" if method == "POST" else ""
            return await self._stream.send(f"{method} {path} HTTP/1.1\r\n{self._head}{length}\r\n".encode() + body)

    async def _connect(self) -> _Stream:
        context = ssl.create_default_context() if self._secure else None
        loop = asyncio.get_running_loop()
        _, stream = await loop.create_connection(_Stream, self._host, self._port, ssl=context)
        return stream

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


async def load(
    url: str,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    headers: Mapping[str, str] | None = None,
    connections: int,
    seconds: float,
    pause: float = 0.0,
    answered: Callable[[Answer], None] = lambda _: None,
) -> Sample:
    """Send the same request for so many `seconds` over each of the connections, `pause` seconds between two.

    `answered` is called with each answer.
    """
    sample = Sample()
    began = time.perf_counter()

    async def one() -> None:
        client = Client(url, headers)
        while (sent := time.perf_counter()) < began + seconds:
            try:
                answer = await client.ask(method, path, body)
            except OSError:
                sample.broken += 1
                client.close()
                await asyncio.sleep(0.05)
                continue
            sample.latencies.append(time.perf_counter() - sent)
            sample.statuses[answer[0]] += 1
            answered(answer)
            if pause:
                await asyncio.sleep(pause)
        client.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    sample.seconds = time.perf_counter() - began
    return sample
