"""Django signals: this process has acquired, lost or released a lock.

Receivers are plain functions. Exceptions of receivers are logged and harm no lock. ``sender`` is
the class `database_locks.lock`.

>>> from django.dispatch import receiver
>>> from database_locks.signals import lock_lost
>>> @receiver(lock_lost)
... def count(sender, name, reason, **kwargs):
...     print(name, reason)

Nested blocks of one lock send each signal once. No signal is sent if ``DATABASE_LOCKS_ENABLED`` is
``False``. A lock that is handed over sends no `lock_released`.
"""

from __future__ import annotations

from django.dispatch import Signal

lock_acquired = Signal()
"""``name``, ``token``, ``holder``. Sent in the thread of the body, or its event loop, before the
body begins; the lock is held and renewed meanwhile."""

lock_lost = Signal()
"""``name``, ``token``, ``holder``, ``reason``, ``detail``, ``last_answer``, ``held_for`` (seconds):
see `LockLost`. ``holder`` is the holder that lost the lock, ``now_holder`` the next one if it is
known. Sent in a thread of its own, whose database connections are closed afterwards, while the body
is interrupted."""

lock_released = Signal()
"""``name``, ``token``, ``holder``, ``held_for`` (seconds). Sent in the thread of the body, or its
event loop, when the database has confirmed the release."""
