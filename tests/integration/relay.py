"""Relays TCP connections on a port to a unix socket: `relay.py PORT SOCKET`."""

import asyncio
import contextlib
import sys


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    to_reader, to_writer = await asyncio.open_unix_connection(sys.argv[2])
    await asyncio.gather(copy(reader, to_writer), copy(to_reader, writer))


async def main() -> None:
    server = await asyncio.start_server(relay, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


asyncio.run(main())
