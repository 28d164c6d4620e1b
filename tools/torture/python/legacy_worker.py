"""A control: legacy (django-database-locks 0.5), in its own environment. See ``worker.py``.

It has no tokens and no fence: it writes while it holds the lock, as its users do.
"""

import json
import os
import random
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "python" / "tests"))
sys.path.insert(0, str(Path(__file__).parent))

from support.sql import _connect, django_database

LONGEST_PAUSE = 20.0


def now():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class Worker:
    def __init__(self, settings):
        self.settings = settings
        self.random = random.Random(settings["seed"])
        self.file = os.open(settings["history"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.stopped, self.breakpoint, self.resumed = False, "", 0
        self.requests = self.writes = 0
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in sys.stdin:
            word, _, state = line.strip().partition(" ")
            if word == "pause":
                self.breakpoint = state
            else:
                self.resumed += 1
        self.stopped = True

    def record(self, e, **more):
        line = json.dumps({"t": now(), "process": self.settings["process"], "e": e, **more}) + "\n"
        os.write(self.file, line.encode())

    def pause_at(self, state, what, look=lambda: None):
        if self.breakpoint != state:
            return False
        self.breakpoint = ""
        before, begun = self.resumed, time.monotonic()
        print(f"paused {what}", flush=True)
        while self.resumed == before and not self.stopped:
            if time.monotonic() - begun > LONGEST_PAUSE:
                break
            look()
            time.sleep(0.005)
        return True

    def round(self):
        import database_locks
        from database_locks.locks import LockException

        self.requests += 1
        request, name = self.requests, self.random.choice(self.settings["locks"])
        ttl = self.settings["ttl_ms"] / 1000
        self.lost = False
        self.record("asked", request=request, lock=name, wait=None)

        def lose(*_):
            self.lost = True

        try:
            with database_locks.lock(
                lock_name=name,
                lock_ttl=ttl,
                lock_ttl_renew=ttl * 2 / 3,
                retry=0.05,
                auto_renew=True,
                lost_lock_cb=lose,
            ):
                self.record("granted", request=request, token=0)
                self.hold(request, name)
                self.record("releasing", request=request)
            self.record("released", request=request, ok=True)
        except LockException as error:
            self.record("gave_up", request=request, why=str(error))
        except Exception as error:  # noqa: BLE001 - a driver's
            self.record("gave_up", request=request, why=str(error))
        time.sleep(self.random.uniform(0.005, 0.06))

    def look(self, request):
        """It trusts its lock until it is notified of a loss."""
        before = now()
        if self.lost:
            self.record("lost", request=request, reason="lost")
            return False
        self.record("trusted", request=request, before=before, lasting=0)
        return True

    def hold(self, request, name):
        if not self.look(request):
            return
        self.pause_at("holding", f"{name} 0", lambda: self.look(request))
        if self.pause_at("blind", f"{name} 0"):
            self.write(request, name)
        for _ in range(self.random.randint(3, 8)):
            if not self.look(request):
                return
            self.write(request, name)
            time.sleep(self.random.uniform(0.02, 0.15))
        self.look(request)

    def write(self, request, name):
        self.writes += 1
        id = f"{self.settings['process']} {self.writes}"
        self.record("write", request=request, id=id)
        try:
            data = _connect(self.settings["data"])
            cursor = data.cursor()
            cursor.execute(f"SELECT value FROM torture_counter WHERE name = '{name}'")
            (value,) = cursor.fetchone()
            if not self.pause_at("fenced", f"{name} 0"):
                time.sleep(self.random.uniform(0, 0.015))
            cursor.execute("BEGIN")
            cursor.execute(
                f"UPDATE torture_counter SET value = {value + 1}, writes = writes + 1 "
                f"WHERE name = '{name}'"
            )
            cursor.execute(
                f"INSERT INTO torture_write SELECT name, writes, 0, '{id}' "
                f"FROM torture_counter WHERE name = '{name}'"
            )
            self.record("committing", id=id)
            cursor.execute("COMMIT")
            self.record("committed", id=id)
            data.close()
        except Exception as error:  # noqa: BLE001 - a driver's
            self.record("failed", id=id, why=str(error))


def main():
    import django
    from django.conf import settings as django_settings

    settings = json.loads(sys.argv[1])
    if settings["url"].startswith("mysql:"):
        import pymysql

        # Django wants a mysqlclient of at least that version.
        pymysql.version_info = (2, 2, 1, "final", 0)
        pymysql.install_as_MySQLdb()
    django_settings.configure(
        DATABASES={"default": django_database(settings["url"])},
        INSTALLED_APPS=["database_locks"],
        USE_TZ=True,
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    )
    django.setup()
    import database_locks

    assert not hasattr(database_locks, "connect"), "this is not 0.5"
    worker = Worker(settings)
    print("ready", flush=True)
    while not worker.stopped:
        worker.round()


if __name__ == "__main__":
    main()
