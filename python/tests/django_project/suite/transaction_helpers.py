"""Writes and losses for tests of locks in transactions."""

import threading
import time

from django.contrib.auth.models import Group
from django.db import connection

from database_locks import connect
from database_locks.models import Lock

from .tests_settings import _url


def written():
    return set(Group.objects.values_list("name", flat=True))


def write(name="written"):
    Group.objects.create(name=name)


def eventually(done, seconds=20):
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} seconds")
        time.sleep(0.01)


def lose(name="job"):
    """Take it from its holder, as another process would."""
    connect(_url()).force_release(name)


def lose_in_database(name="job"):
    """The same without a notification, which on PostgreSQL a process hears that has waited for a lock."""
    if connection.vendor != "postgresql":
        return lose(name)

    def free():
        Lock.objects.filter(name=name).update(expires_at=None, granted_until=None, grant_id=None)
        connection.close()

    thread = threading.Thread(target=free)
    thread.start()
    thread.join()


def lose_and_wait(held):
    """Lose the lock, and wait here for the loss. A short ttl makes the holder notice it soon."""
    lose(held.name)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        time.sleep(0.01)
