"""Import path of legacy (django-database-locks 0.5) for `lock`, `locked`, `DBLock` and the
exceptions."""

from ._arguments import NOTSET
from ._held import Held
from ._legacy import DBLock
from ._lock import lock, logger
from ._locked import is_locked, locked
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
    "NOTSET",
    "DBLock",
    "Held",
    "LockAlreadyRan",
    "LockConfigError",
    "LockException",
    "LockLost",
    "LockReleased",
    "LockTimeout",
    "LockUnavailable",
    "is_locked",
    "lock",
    "locked",
    "logger",
]
