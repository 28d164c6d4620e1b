import time
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from database_locks import locked


@locked("nightly", on_busy="raise", meta={"why": "the nightly report"})
class Command(BaseCommand):
    """Makes the report; a second one at the same time says who is at it, and ends."""

    help = "Make the nightly report, unless another process is at it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--seconds", type=float, default=20)

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write("Got the lock, making the report …")
        time.sleep(options["seconds"])  # the work
        self.stdout.write("Done.")
