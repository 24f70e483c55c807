"""The URLs of the project. /healthz is answered before any of these: jobs/health.py."""

from django.apps import apps
from django.contrib import admin
from django.urls import include, path

from boiler.settings import get

admin.site.site_header = admin.site.site_title = "Double Boiler"
admin.site.index_title = "Operator"

urlpatterns = [
    path(f"{get('ADMIN_PATH')}/", admin.site.urls),
]
if apps.is_installed("demo"):
    urlpatterns.append(path("", include("demo.urls")))
