"""A process that holds locks with legacy (django-database-locks 0.5), in its environment.

Takes the commands of ``holder.py``, and two more: ``migrate`` creates the table, and ``contend NAME``
acquires and releases this lock and locks with new names until the next line, and prints the number of
rounds.
"""

import json
import os
import queue
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.sql import django_database

lines: "queue.SimpleQueue[str]" = queue.SimpleQueue()


def read():
    for line in sys.stdin:
        lines.put(line.strip())
    # Its own `with` would not release on SystemExit: the process ends as a crashed one does.
    os._exit(0)


def say(line):
    print(line, flush=True)


def hold(arguments):
    import database_locks

    with database_locks.lock(**arguments):
        say("held")
        while (word := lines.get()) != "release":
            if word == "ask":
                say(f"is_held {str(is_held(arguments['lock_name'])).lower()}")
            else:
                say(f"what is {word}?")
    say("released")


def is_held(name):
    from database_locks.models import Lock

    return Lock.objects.get(name=name).active


def contend(name):
    import database_locks

    rounds = 0
    while lines.empty():
        # Without a renewal: its thread may take the lock again after it was released.
        for each in (name, f"{name} {rounds}"):
            with database_locks.lock(each, auto_renew=False, retry=0.01):
                pass
        rounds += 1
        if rounds == 1:
            say("contending")
    say(f"{lines.get()} {rounds}")


def count(name, rounds, file):
    import database_locks

    for _ in range(rounds):
        with database_locks.lock(name, auto_renew=False, retry=0.02):
            number = int(Path(file).read_text())
            time.sleep(0.001)
            Path(file).write_text(str(number + 1))
    say("counted")


def main():
    import django
    from django.conf import settings

    url = sys.argv[1]
    if url.startswith("mysql:"):
        import pymysql

        # Django wants a mysqlclient of at least that version.
        pymysql.version_info = (2, 2, 1, "final", 0)
        pymysql.install_as_MySQLdb()
    settings.configure(
        DATABASES={"default": django_database(url)},
        INSTALLED_APPS=["database_locks"],
        USE_TZ=True,
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    )
    django.setup()
    from django.core.management import call_command

    import database_locks
    from database_locks.locks import LockException

    assert not hasattr(database_locks, "connect"), "this is not 0.5"
    threading.Thread(target=read, daemon=True).start()
    say("ready")
    while True:
        try:
            word, _, rest = lines.get().partition(" ")
            if word == "hold":
                hold(json.loads(rest))
            elif word == "contend":
                contend(rest)
            elif word == "count":
                count(**json.loads(rest))
            elif word == "migrate":
                call_command("migrate", verbosity=0)
                say("migrated")
            else:
                say(f"what is {word}?")
        except LockException as error:
            say(f"lost {error}" if "lost" in str(error) else f"error LockException: {error}")


if __name__ == "__main__":
    main()
