"""Puts the demo's housekeeping into the schedule: every minute."""

from django.db import migrations

NAME = "demo: clear away finished jobs"


def schedule(apps, _schema_editor):
    every_minute, _ = apps.get_model("django_celery_beat", "CrontabSchedule").objects.get_or_create(
        minute="*", hour="*", day_of_week="*", day_of_month="*", month_of_year="*", timezone="UTC"
    )
    apps.get_model("django_celery_beat", "PeriodicTask").objects.update_or_create(
        name=NAME,
        # A worker that was away for an hour has one round to make, not sixty.
        defaults={"task": "demo.tasks.prune", "crontab": every_minute, "expire_seconds": 60},
    )


def unschedule(apps, _schema_editor):
    apps.get_model("django_celery_beat", "PeriodicTask").objects.filter(name=NAME).delete()


class Migration(migrations.Migration):
    dependencies = [
        ("demo", "0001_initial"),
        ("django_celery_beat", "0019_alter_periodictasks_options"),
    ]

    operations = [migrations.RunPython(schedule, unschedule)]
