"""A process that takes locks by django-database-locks 0.5, in the environment of that.

It obeys as ``holder.py`` does, and ``migrate`` makes its table.
"""

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from support.sql import django_database


def say(line):
    print(line, flush=True)


def obey(name):
    from database_locks.models import Lock
    from django.utils import timezone

    for line in iter(sys.stdin.readline, ""):
        word = line.strip()
        if word == "release":
            return
        if word == "ask":
            row = Lock.objects.get(name=name)
            say(f"is_held {str(bool(row.expires_at and row.expires_at >= timezone.now())).lower()}")
        else:
            say(f"what is {word}?")
    # Its own `with` would not release on SystemExit: the process ends as a crashed one does.
    os._exit(0)


def main():
    import django
    from django.conf import settings

    url = sys.argv[1]
    if url.startswith("mysql:"):
        import pymysql

        # Django 4.2 wants mysqlclient of at least that version.
        pymysql.version_info = (2, 2, 1, "final", 0)
        pymysql.install_as_MySQLdb()
    settings.configure(
        DATABASES={"default": django_database(url)},
        INSTALLED_APPS=["database_locks"],
        USE_TZ=True,
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    )
    django.setup()
    from database_locks.locks import LockException
    from django.core.management import call_command

    import database_locks

    assert not hasattr(database_locks, "connect"), "this is not 0.5"
    say("ready")
    for line in iter(sys.stdin.readline, ""):
        word, _, rest = line.strip().partition(" ")
        if word == "migrate":
            call_command("migrate", verbosity=0)
            say("migrated")
            continue
        if word != "hold":
            say(f"what is {word}?")
            continue
        arguments = json.loads(rest)
        try:
            with database_locks.lock(**arguments):
                say("held")
                obey(arguments["lock_name"])
        except LockException as error:
            say(f"lost {error}" if "lost" in str(error) else f"error LockException: {error}")
        else:
            say("released")


if __name__ == "__main__":
    main()
