"""Signals of Django: a lock was acquired, lost or released by this process.

Receivers are plain functions; import this module where they are connected. What they raise is logged and
does no harm to a lock. ``sender`` is the class `database_locks.lock`.

>>> from django.dispatch import receiver
>>> from database_locks.signals import lock_lost
>>> @receiver(lock_lost)
... def count(sender, name, reason, **kwargs):
...     print(name, reason)

Each is sent for an outermost hold: not for a lock that nests in itself, and not where
``DATABASE_LOCKS_ENABLED`` is ``False``. A lock that is handed over is not released here.
"""

from __future__ import annotations

from django.dispatch import Signal

lock_acquired = Signal()
"""``name``, ``token``, ``holder``. In the thread of the body, or its event loop, before it begins: the
lock is held and renewed meanwhile."""

lock_lost = Signal()
"""``name``, ``token``, ``holder``, ``reason``, ``detail``, ``last_answer``, ``held_for`` (seconds), as
attributes of `LockLost`; ``holder`` is the one that lost it, ``now_holder`` the next one if that is known.
In a thread of its own, whose connections are closed afterwards; the body is told at the same time."""

lock_released = Signal()
"""``name``, ``token``, ``holder``, ``held_for`` (seconds). In the thread of the body, or its event loop,
when the database has confirmed the release."""
