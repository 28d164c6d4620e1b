"""Sends the Django signals of `database_locks.signals`, if the project has imported them.

A receiver is code of the application: an exception in it, or a long run, must neither lose a lock
nor leave one held.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from .. import _registry
from ..exceptions import LockLost

if TYPE_CHECKING:
    from .._held import Held
    from .._typing import Loss

logger = logging.getLogger("database_locks.locks")

_since: weakref.WeakKeyDictionary[object, float] = weakref.WeakKeyDictionary()
_lost: weakref.WeakSet[object] = weakref.WeakSet()

sender: type | None = None
"""The ``sender`` of all signals: the class `database_locks.lock`, which sets it."""


def _signal(name: str) -> Any:
    """The signal; ``None`` if no receiver is connected."""
    signal = getattr(sys.modules.get("database_locks.signals"), name, None)
    return signal if signal is not None and signal.receivers else None


def acquired(held: Held) -> None:
    """Called before the body begins. Raises `LockLost` only for another lock of this thread."""
    # Only a program that connects receivers imports the signals.
    if "database_locks.signals" in sys.modules:
        _since[held] = time.monotonic()
    for words in _about(held):
        _send("lock_acquired", words)


def released(held: Held) -> None:
    """Called after the release. Raises as `acquired` does."""
    since = _since.pop(held, None)
    held_for = None if since is None else time.monotonic() - since
    for words in _about(held):
        _send("lock_released", words | {"held_for": held_for})


def lost(held: Held, loss: Loss) -> None:
    """Called from any thread, once for each lost hold. Does not wait for receivers."""
    if _signal("lock_lost") is None or held in _lost:
        return
    _lost.add(held)
    token = held.tokens.get(loss["name"])
    words = {**loss, "token": token, "now_holder": loss["holder"], "holder": held.holder}
    words.pop("holder_token", None)
    threading.Thread(
        target=_send_lost, args=(words,), name="database-locks-signal", daemon=True
    ).start()


def _about(held: Held) -> list[dict[str, Any]]:
    """Of each lock."""
    return [
        {"name": name, "token": token, "holder": held.holder} for name, token in held.tokens.items()
    ]


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
    try:
        # Django logs the exceptions of receivers.
        answers = signal.send_robust(sender, **words)
    except LockLost:
        raise
    except Exception:
        # One cause: a receiver that is a coroutine function, called in a running event loop.
        logger.exception("receivers of %s failed", name)
        return
    for _, answer in answers:
        if isinstance(answer, LockLost) and _is_ours(answer):
            # It interrupted the receiver, and is meant for the body of another block.
            raise answer


def _is_ours(error: LockLost) -> bool:
    holds = _registry.all_held_here().values()
    return any(held.tokens.get(error.name or "") == error.token for held in holds)
