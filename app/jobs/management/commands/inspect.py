"""`manage.py inspect`: what `boil inspect` runs with the dyno's environment."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from jobs.inspection import InspectionError, inspect


class Command(BaseCommand):
    help = "Look at everything in and around the running dyno, send jobs round, and print what was found as JSON."
    requires_system_checks = []  # noqa: RUF012 (Django's own declaration)

    def handle(self, *_args: Any, **_options: Any) -> None:
        try:
            document = inspect(visit=True)
        except InspectionError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(json.dumps(document))
