"""`manage.py parked`: the jobs that killed their worker too often, to be started again or thrown away."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from jobs.models import ParkedJob
from jobs.parking import retry


class Command(BaseCommand):
    help = "List the parked jobs, or start one again, or throw one away."

    def add_arguments(self, parser: ArgumentParser) -> None:
        group = parser.add_mutually_exclusive_group()
        group.add_argument("--retry", type=int, metavar="ID", help="put this one back on the queue")
        group.add_argument("--discard", type=int, metavar="ID", help="throw this one away")

    def handle(self, *_args: Any, retry: int | None, discard: int | None, **_options: Any) -> None:
        if retry is not None:
            self._retry(self._find(retry))
        elif discard is not None:
            self._find(discard).delete()
            self.stdout.write(f"job {discard} is thrown away")
        else:
            self._list()

    def _find(self, number: int) -> ParkedJob:
        try:
            return ParkedJob.objects.get(pk=number)
        except ParkedJob.DoesNotExist:
            raise CommandError(f"no parked job {number}: `python app/manage.py parked` lists them") from None

    def _retry(self, job: ParkedJob) -> None:
        number = job.pk
        try:
            retry(job)
        except KeyError:
            raise CommandError(f"job {number}: there is no task {job.task} any more: discard it") from None
        self.stdout.write(f"job {number} is on the queue again")

    def _list(self) -> None:
        row = "{:>6}  {:<19}  {:>6}  {}"
        lines = [row.format("ID", "PARKED (UTC)", "STARTS", "TASK")]
        lines += [
            row.format(job.pk, f"{job.parked:%Y-%m-%d %H:%M:%S}", job.starts, f"{job.task} {job.args} {job.kwargs}")
            for job in ParkedJob.objects.all()
        ]
        self.stdout.write("\n".join(lines) if len(lines) > 1 else "no job is parked")
