"""What `make deploy-…` prints: Ansible's usual lines, errors as one line each, and modules' lines while they work."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

from ansible import constants as C  # noqa: N812 (Ansible's own name for it)
from ansible.plugins.callback.default import CallbackModule as Default

DOCUMENTATION = """
    name: checklist
    type: stdout
    short_description: the default output with errors in one line and live lines of modules
    extends_documentation_fragment:
      - default_callback
      - result_format_callback
"""


class CallbackModule(Default):
    """Ansible's default output, with two differences."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "checklist"

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Listen for the lines of modules: module_utils/live.py finds the socket by the environment."""
        super().v2_playbook_on_start(playbook)
        self._folder = tempfile.TemporaryDirectory(prefix="deploy-")
        path = str(Path(self._folder.name) / "live")
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen()
        os.environ["DEPLOY_LIVE"] = path
        threading.Thread(target=self._accept, args=[server], daemon=True).start()

    def _accept(self, server: socket.socket) -> None:
        while True:
            client, _ = server.accept()
            threading.Thread(target=self._print_lines, args=[client], daemon=True).start()

    def _print_lines(self, client: socket.socket) -> None:
        with client, client.makefile(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                self._display.display(f"    {line.rstrip()}")

    def v2_runner_on_ok(self, result: Any) -> None:
        """A `debug` task is its message."""
        if result.task.action in C._ACTION_DEBUG and "msg" in result.result:
            self._display.display(str(result.result["msg"]), color=C.COLOR_OK)
        else:
            super().v2_runner_on_ok(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """One line: the module's own message."""
        message = result.result.get("msg")
        if self._display.verbosity or ignore_errors or not message:
            super().v2_runner_on_failed(result, ignore_errors)
        else:
            text = f"fatal: [{self.host_label(result)}]: {message}"
            self._display.display(text, color=C.COLOR_ERROR, stderr=True)
