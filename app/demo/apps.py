"""The demo as a Django app."""

from __future__ import annotations

from django.apps import AppConfig


class DemoConfig(AppConfig):
    name = "demo"

    def ready(self) -> None:
        """Make the counter of requests before gunicorn forks its workers, so that they share it."""
        from . import meter  # noqa: F401, PLC0415
