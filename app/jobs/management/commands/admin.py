"""`manage.py admin`: an account for the operator."""

from __future__ import annotations

import secrets
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand
from django.urls import reverse

from boiler.settings import get


class Command(BaseCommand):
    help = "Make a superuser for Django's admin, or give an old one a new password; prints the password once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", nargs="?", default="admin", help="the account's name (default: admin)")

    def handle(self, *_args: Any, name: str, **_options: Any) -> None:
        # It goes neither through an argument nor through a variable, so it stands in no process list.
        password = secrets.token_urlsafe(16)
        user, made = get_user_model().objects.get_or_create(username=name)
        user.is_staff = user.is_superuser = user.is_active = True
        user.set_password(password)
        user.save()
        host = next((host for host in get("DJANGO_ALLOWED_HOSTS") if not host.startswith(("*", "."))), "HOST")
        self.stdout.write(
            f"{'account made' if made else 'new password'}: name {name}, password {password}\n"
            f"log in at {reverse('admin:index')} of {host}, and change the password there"
        )
