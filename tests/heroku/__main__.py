"""Start the double by hand: `.venv/bin/python -m tests.heroku`; Ctrl-C ends it with all its apps."""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
from pathlib import Path

APP = Path(__file__).parents[2] / "app"
if str(APP) not in sys.path:  # pytest puts it there, `python -m` does not
    sys.path.insert(0, str(APP))

from boiler.postgres import Embedded  # noqa: E402
from tests.heroku.api import Double  # noqa: E402


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
