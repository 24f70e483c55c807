"""The project's WSGI application with views that hold on to a database connection."""

from __future__ import annotations

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

settings.ROOT_URLCONF = __name__
application = get_wsgi_application()


def sleep(request: HttpRequest, milliseconds: int) -> HttpResponse:
    """Let PostgreSQL sleep; answers with this process's id."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [milliseconds / 1000])
    return HttpResponse(str(os.getpid()))


def publish(request: HttpRequest) -> HttpResponse:
    """Send one job, half of the times inside a transaction."""
    from django.db import transaction  # noqa: PLC0415

    from tests.jobs_tasks import note  # noqa: PLC0415 (tasks want the app)

    if "atomic" in request.GET:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            note.delay("/dev/null", request.GET["name"])
    else:
        note.delay("/dev/null", request.GET["name"])
    return HttpResponse("sent")


def hold(request: HttpRequest, milliseconds: int) -> JsonResponse:
    """Keep a transaction open, here or, if a `file` is named, in so many jobs that write there."""
    from tests import jobs_tasks  # noqa: PLC0415 (as above)

    if "file" not in request.GET:
        return JsonResponse(jobs_tasks.hold_transaction(milliseconds))
    for _ in range(int(request.GET["jobs"])):
        jobs_tasks.hold.delay(request.GET["file"], milliseconds)
    return JsonResponse({})


urlpatterns = [
    path("sleep/<int:milliseconds>", sleep),
    path("publish", publish),
    path("hold/<int:milliseconds>", hold),
]
