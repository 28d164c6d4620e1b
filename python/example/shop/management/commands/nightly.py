import time
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from database_locks import locked


@locked("nightly", on_busy="raise", meta={"why": "the nightly report"})
class Command(BaseCommand):
    """Makes the report. A second process fails with a message that names the holder."""

    help = "Make the nightly report, unless another process makes it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--seconds", type=float, default=20)

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write("Got the lock, making the report …")
        time.sleep(options["seconds"])  # the work
        self.stdout.write("Done.")
