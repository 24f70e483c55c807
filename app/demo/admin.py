"""The demo's jobs in Django's admin: what became of them."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from .models import Job


@admin.register(Job)
class JobAdmin(admin.ModelAdmin):
    """Results, to be looked at and not changed."""

    list_display = ("id", "kind", "seconds", "state", "pid", "runs", "created", "started", "finished", "error")
    list_filter = ("state", "kind")
    ordering = ("-id",)
    show_full_result_count = False

    def has_add_permission(self, _request: HttpRequest) -> bool:
        """Jobs come by POST /jobs."""
        return False

    def has_change_permission(self, _request: HttpRequest, _job: Any = None) -> bool:
        """The worker writes them."""
        return False
