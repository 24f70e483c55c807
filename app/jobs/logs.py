"""Log records of one line each: platforms keep, sort and filter logs by the line."""

from __future__ import annotations

import logging


class LineFormatter(logging.Formatter):
    """A formatter that writes the line breaks of a message or traceback as `\\n`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a single line."""
        return "\\n".join(super().format(record).splitlines())
