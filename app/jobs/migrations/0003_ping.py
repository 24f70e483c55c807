"""A job that only goes round: its record."""

import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("jobs", "0002_parking"),
    ]

    operations = [
        migrations.CreateModel(
            name="Ping",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("sent", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("done", models.DateTimeField(null=True)),
                ("runs", models.PositiveIntegerField(default=0)),
                ("pid", models.PositiveIntegerField(null=True)),
                ("host", models.CharField(default="", max_length=255)),
            ],
        ),
    ]
