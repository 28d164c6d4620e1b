"""Sends the signals of Django, where a project has imported them.

A receiver is code of the application: what it raises, or how long it takes, must not lose a lock, nor
leave one held.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from .exceptions import LockLost

if TYPE_CHECKING:
    from ._held import Held
    from ._loss import Loss

logger = logging.getLogger("database_locks.locks")

_since: weakref.WeakKeyDictionary[object, float] = weakref.WeakKeyDictionary()
_lost: weakref.WeakSet[object] = weakref.WeakSet()


def _signal(name: str) -> Any:
    """`None` where nothing is connected to it."""
    signal = getattr(sys.modules.get("database_locks.signals"), name, None)
    return signal if signal is not None and signal.receivers else None


def acquired(held: Held) -> None:
    """Before its body begins. Raises `LockLost` only for another lock that this thread holds."""
    # The module of the signals is imported by what connects to them.
    if "database_locks.signals" in sys.modules:
        _since[held] = time.monotonic()
    _send("lock_acquired", _about(held))


def released(held: Held) -> None:
    """After the release. Raises as `acquired` does."""
    since = _since.pop(held, None)
    held_for = None if since is None else time.monotonic() - since
    _send("lock_released", _about(held) | {"held_for": held_for})


def lost(held: Held, loss: Loss) -> None:
    """Once for a hold, from any thread; does not wait for receivers."""
    if _signal("lock_lost") is None or held in _lost:
        return
    _lost.add(held)
    words = _about(held) | {**loss, "now_holder": loss["holder"], "holder": held.holder}
    words.pop("holder_token", None)
    threading.Thread(
        target=_send_lost, args=(words,), name="database-locks-signal", daemon=True
    ).start()


def _about(held: Held) -> dict[str, Any]:
    return {"name": held.name, "token": held.token, "holder": held.holder}


def _send_lost(words: dict[str, Any]) -> None:
    from django.conf import settings
    from django.db import connections

    try:
        _send("lock_lost", words)
    finally:
        if settings.configured:
            connections.close_all()


def _send(name: str, words: dict[str, Any]) -> None:
    signal = _signal(name)
    if signal is None:
        return
    from .locks import lock

    try:
        # Django logs what a receiver raises.
        answers = signal.send_robust(lock, **words)
    except LockLost:
        raise
    except Exception:
        # A coroutine function in a running loop, for one.
        logger.exception("receivers of %s failed", name)
        return
    for _, answer in answers:
        if isinstance(answer, LockLost) and _is_ours(answer):
            # It arrived in this thread while a receiver ran, which must not swallow it.
            raise answer


def _is_ours(error: LockLost) -> bool:
    from ._held import holds

    return any(held.name == error.name and held.token == error.token for held in holds().values())
