"""Distributed locks as rows in the SQL database of the application.

>>> import database_locks
>>> locks = database_locks.connect("memory:")
>>> with locks.lock("report") as held:
...     print("held:", not held.lost)
held: True

In a Django project ``lock`` and ``locked`` use the project's own database. Importing this package
does not import Django.
"""

from ._connect import Locks, connect
from ._core import __version__
from ._held import Held
from ._leader import Term, leader
from ._lock import lock
from ._lock_all import lock_all
from ._locked import is_locked, locked
from ._semaphore import semaphore
from .exceptions import (
    LockAlreadyRan,
    LockConfigError,
    LockException,
    LockLost,
    LockReleased,
    LockTimeout,
    LockUnavailable,
)

__all__ = [
    "Held",
    "LockAlreadyRan",
    "LockConfigError",
    "LockException",
    "LockLost",
    "LockReleased",
    "LockTimeout",
    "LockUnavailable",
    "Locks",
    "Term",
    "__version__",
    "connect",
    "is_locked",
    "leader",
    "lock",
    "lock_all",
    "locked",
    "semaphore",
]
