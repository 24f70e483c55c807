"""Start the double by hand: `.venv/bin/python -m tests.heroku`; Ctrl-C ends it with all its apps."""

from __future__ import annotations

import signal
import tempfile
import threading
from pathlib import Path

from boiler.postgres import Embedded
from tests.heroku.api import Double


def main() -> None:
    """Serve until interrupted or terminated."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with tempfile.TemporaryDirectory(prefix="heroku-") as name:
        folder = Path(name)
        embedded = Embedded(folder / "data", folder)
        embedded.prepare(wait=0)
        admin = f"postgresql://postgres@{name.replace('/', '%2F')}/"
        with embedded.serving(), Double(admin, Path(tempfile.gettempdir()) / "heroku-builds") as double:
            print("\n".join(f"export {key}={value}" for key, value in double.environ.items()), flush=True)
            stopped.wait()


if __name__ == "__main__":
    main()
