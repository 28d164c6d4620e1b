from typing import Any

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandParser


class Command(BaseCommand):
    help = "Create the database and a user, and start the server."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("address", nargs="?", default="127.0.0.1:8000")
        parser.add_argument("--only-prepare", action="store_true", help="do not start the server")

    def handle(self, *args: Any, **options: Any) -> None:
        call_command("migrate", verbosity=0)
        users = get_user_model().objects
        if not users.filter(username="demo").exists():
            users.create_superuser("demo", password="demo")  # noqa: S106
        address = options["address"]
        self.stdout.write(
            f"http://{address}/         examples\n"
            f"http://{address}/admin/   the locks: log in as demo, with the password demo\n"
        )
        if not options["only_prepare"]:
            call_command("runserver", address, use_reloader=False)
