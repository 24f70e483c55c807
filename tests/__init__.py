"""The tests, and the commands of the Makefile that look at a dyno. All of them import what lies in app/."""

import sys
from pathlib import Path

APP = Path(__file__).resolve().parents[1] / "app"
if str(APP) not in sys.path:  # pytest puts it there, `python -m` does not
    sys.path.insert(0, str(APP))
