"""Distributed locks as rows in the SQL database that you already have.

>>> import database_locks
>>> locks = database_locks.connect("memory:")
>>> with locks.lock("report") as held:
...     print("held:", not held.lost)
held: True

In a Django project ``lock`` and ``locked`` use the project's own database, see ``docs/django.md``.
Importing this package does not import Django.
"""

from ._core import __version__
from ._manager import Locks, connect
from .exceptions import (
    LockConfigError,
    LockException,
    LockLost,
    LockReleased,
    LockTimeout,
    LockUnavailable,
)
from .locks import Held, is_locked, lock, locked

__all__ = [
    "Held",
    "LockConfigError",
    "LockException",
    "LockLost",
    "LockReleased",
    "LockTimeout",
    "LockUnavailable",
    "Locks",
    "__version__",
    "connect",
    "is_locked",
    "lock",
    "locked",
]
