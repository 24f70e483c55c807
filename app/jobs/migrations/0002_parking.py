"""Jobs that were started more than once, and parked ones."""

import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("jobs", "0001_pgmq"),
    ]

    operations = [
        migrations.CreateModel(
            name="ParkedJob",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("task_id", models.CharField(max_length=255, unique=True)),
                ("task", models.CharField(max_length=255)),
                ("args", models.JSONField()),
                ("kwargs", models.JSONField()),
                ("starts", models.PositiveIntegerField()),
                ("parked", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={
                "ordering": ("parked",),
            },
        ),
        migrations.CreateModel(
            name="Redelivery",
            fields=[
                ("task_id", models.CharField(max_length=255, primary_key=True, serialize=False)),
                ("starts", models.IntegerField()),
            ],
        ),
    ]
