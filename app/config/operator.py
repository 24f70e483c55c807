"""What Django's admin needs of each request: only there, because together these cost as much as a whole small request.

An app whose visitors log in takes Django's own middleware of the same names instead.
"""

from __future__ import annotations

from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse

from boiler.settings import get

PREFIX = f"/{get('ADMIN_PATH')}/"


class BelowAdmin:
    """Passes on what is not below ADMIN_PATH."""

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """The response."""
        return (super().__call__ if request.path_info.startswith(PREFIX) else self.get_response)(request)


class AdminSessionMiddleware(BelowAdmin, SessionMiddleware):
    """Sessions."""


class AdminAuthenticationMiddleware(BelowAdmin, AuthenticationMiddleware):
    """Users."""


class AdminMessageMiddleware(BelowAdmin, MessageMiddleware):
    """Messages to them."""


def client_address(request: HttpRequest) -> str:
    """The address that failed logins are counted by.

    The last one of X-Forwarded-For is what the platform's router has seen itself; the others are the client's word.
    """
    seen = request.META.get("HTTP_X_FORWARDED_FOR", "").rpartition(",")[2].strip()
    return seen or request.META["REMOTE_ADDR"]
