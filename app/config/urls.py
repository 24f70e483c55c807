"""The URLs of the project. /healthz is answered before any of these: jobs/health.py."""

from django.apps import apps
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import include, path

from boiler.settings import get

admin.site.site_header = admin.site.site_title = "Double Boiler"
admin.site.index_title = "Operator"


def no_page_yet(_request: HttpRequest) -> HttpResponse:
    """What is at / without the demo, until an app of one's own is there."""
    return HttpResponse("This dyno runs. Its first page is still to come: app/config/urls.py\n", "text/plain")


urlpatterns = [
    path(f"{get('ADMIN_PATH')}/", admin.site.urls),
    path("", include("demo.urls") if apps.is_installed("demo") else no_page_yet),
]
