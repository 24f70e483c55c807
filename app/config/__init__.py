"""The Django project: settings, URLs, and what gunicorn and Celery load."""

from .celery import app

__all__ = ["app"]
