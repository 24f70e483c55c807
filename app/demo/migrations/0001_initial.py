"""The jobs of the demo."""

import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Job",
            fields=[
                (
                    "id",
                    models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"),
                ),
                (
                    "kind",
                    models.CharField(choices=[("sleep", "Sleep"), ("cpu", "Cpu"), ("io", "Io")], max_length=5),
                ),
                ("seconds", models.FloatField()),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("queued", "Queued"),
                            ("running", "Running"),
                            ("done", "Done"),
                            ("failed", "Failed"),
                        ],
                        db_default="queued",
                        max_length=7,
                    ),
                ),
                ("created", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("started", models.DateTimeField(null=True)),
                ("finished", models.DateTimeField(null=True)),
                ("pid", models.IntegerField(null=True)),
                ("runs", models.IntegerField(db_default=0)),
                ("error", models.CharField(db_default="", max_length=200)),
            ],
            options={
                "indexes": [
                    models.Index(models.F("id"), condition=models.Q(("state", "queued")), name="demo_job_queued"),
                    models.Index(
                        models.F("finished"),
                        condition=models.Q(("finished__isnull", False)),
                        name="demo_job_finished",
                    ),
                ],
            },
        ),
    ]
