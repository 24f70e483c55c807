"""The URLs of the project. /healthz is answered before any of these: jobs/health.py."""

from django.urls import include, path

urlpatterns = [
    path("", include("demo.urls")),
]
