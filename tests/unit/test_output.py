"""The dyno's log."""

import os
import re
import time
from pathlib import Path

from boiler.output import CHUNK, FULL, LineBuffer, Output


def lines(buffer: LineBuffer, *pieces: bytes) -> list[bytes]:
    return [line for piece in pieces for line in buffer.feed(piece)] + list(buffer.finish())


def test_lines_are_put_together_from_pieces() -> None:
    assert lines(LineBuffer(), b"one\ntw", b"o\nthr", b"ee\n") == [b"one", b"two", b"three"]


def test_a_line_of_one_megabyte_stays_one_line() -> None:
    long = b"x" * 1_000_000
    pieces = [long[start : start + 65536] for start in range(0, len(long), 65536)]
    assert lines(LineBuffer(), *pieces, b"\n") == [long]


def test_a_last_line_without_newline_is_kept() -> None:
    assert lines(LineBuffer(), b"one\nrest") == [b"one", b"rest"]


def test_bytes_that_are_no_utf8_and_unicode_line_breaks_pass_unchanged(tmp_path: Path) -> None:
    text = b"\xff\xfe caf\xc3\xa9 \xe2\x80\xa8 \x0b \x85 end"
    with (tmp_path / "log").open("wb") as file:
        output = Output(file.fileno(), ["web", "worker"])
        output.line("web", text)
        output.flush(1)
    written = (tmp_path / "log").read_bytes()
    assert re.fullmatch(rb"\d\d:\d\d:\d\d web    \| (.*)\n", written, re.DOTALL)[1] == text


def test_a_log_that_nobody_reads_never_blocks_the_writer() -> None:
    reader, writer = os.pipe()
    output = Output(writer, ["web"])
    while not output.full:
        output.line("web", b"x" * 10_000)
    began = time.monotonic()
    output.flush(0.2)
    assert time.monotonic() - began < 2
    assert output.size > 0
    received = b""
    os.set_blocking(reader, False)
    while output.size:
        output.flush(0.01)
        received += os.read(reader, 1 << 20)
    assert received.count(b"\n") >= FULL // 10_100
    assert all(len(line) == len(received.split(b"\n")[0]) for line in received.splitlines())
    assert CHUNK <= 4096
    os.close(reader)
    os.close(writer)


def test_a_reader_that_has_gone_does_not_end_the_dyno() -> None:
    reader, writer = os.pipe()
    output = Output(writer, ["web"])
    os.close(reader)
    output.line("web", b"one")
    output.flush(1)
    output.line("web", b"two")
    assert output.size == 0
    os.close(writer)
