"""Which jobs run, found without looking through all; and the last benchmark."""

import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("demo", "0002_schedule"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="job",
            index=models.Index(models.F("id"), condition=models.Q(("state", "running")), name="demo_job_running"),
        ),
        migrations.CreateModel(
            name="Bench",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("began", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
        ),
    ]
