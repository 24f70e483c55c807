"""Parked jobs in Django's admin: retry or discard them. The schedule's admin is django-celery-beat's."""

from __future__ import annotations

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from .models import ParkedJob
from .parking import retry


@admin.register(ParkedJob)
class ParkedJobAdmin(admin.ModelAdmin):
    """The jobs that killed their worker too often."""

    list_display = ("task", "args", "kwargs", "starts", "parked")
    list_filter = ("task",)
    actions = ("retry", "discard")
    readonly_fields = ("task_id", "task", "args", "kwargs", "starts", "parked")

    def has_add_permission(self, _request: HttpRequest) -> bool:
        """Jobs park themselves."""
        return False

    def get_actions(self, request: HttpRequest) -> dict:
        """Without Django's own for deleting: discard says what it means."""
        actions = super().get_actions(request)
        actions.pop("delete_selected", None)
        return actions

    @admin.action(description="Retry: put back on the queue", permissions=["change"])
    def retry(self, request: HttpRequest, jobs: QuerySet[ParkedJob]) -> None:
        """Send them anew."""
        sent = 0
        for job in jobs:
            try:
                retry(job)
            except KeyError:
                text = f"There is no task {job.task} any more: discard {job.task_id}."
                self.message_user(request, text, messages.ERROR)
            else:
                sent += 1
        if sent:
            self.message_user(request, f"On the queue again: {sent}.", messages.SUCCESS)

    @admin.action(description="Discard: throw away", permissions=["delete"])
    def discard(self, request: HttpRequest, jobs: QuerySet[ParkedJob]) -> None:
        """Delete them."""
        deleted, _ = jobs.delete()
        self.message_user(request, f"Thrown away: {deleted}.", messages.SUCCESS)
