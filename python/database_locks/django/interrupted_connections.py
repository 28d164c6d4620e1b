"""Closes Django connections whose query was interrupted by the loss of a lock.

Such a connection has an answer that the driver never reads, so every later query on it fails: in
the application's error handler, and with ``CONN_MAX_AGE`` in the next request. The end of the block
closes it, as Django does after a network error, and Django opens another one.
"""

from __future__ import annotations

import logging
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._held import Held

logger = logging.getLogger("database_locks.locks")

_FRAMES = 400
"""How many frames are searched, the innermost first."""


def note(held: Held, frame: FrameType | None) -> None:
    """Remember the connection that the body was using when the loss was reported."""
    if _is_loaded():
        held._interrupted += _in_frames(frame)


def close(held: Held, raised: BaseException | None) -> None:
    """Close the interrupted connections. Called in the thread of the body, which owns them."""
    if not _is_loaded():
        return
    from django.db import connections

    found = list(held._interrupted)
    held._interrupted = []
    traceback = None if raised is None else raised.__traceback__
    while traceback is not None:
        found += _of_frame(traceback.tb_frame)
        traceback = traceback.tb_next
    for connection in connections.all(initialized_only=True):
        if any(connection is one for one in found) or _awaits_answer(connection):
            logger.info(
                "closing the connection `%s`: the loss of lock %s interrupted its query",
                connection.alias,
                held.name,
            )
            connection.close()


def _is_loaded() -> bool:
    # Settings that Django has not loaded yet are not loaded for this.
    return "django.db" in sys.modules and sys.modules["django.conf"].settings.configured


def _in_frames(frame: FrameType | None) -> list[Any]:
    found: list[Any] = []
    for _ in range(_FRAMES):
        if frame is None:
            break
        found += _of_frame(frame)
        frame = frame.f_back
    return found


def _of_frame(frame: FrameType) -> list[Any]:
    """The connection of a frame of Django's: its ``self``, or that of its cursor."""
    if not frame.f_globals.get("__name__", "").startswith("django.db.backends."):
        return []
    # `__dict__` and not `hasattr`, which would run code of the object.
    own = frame.f_locals.get("self")
    inside = getattr(own, "__dict__", {})
    return [own] if "alias" in inside and "settings_dict" in inside else [inside.get("db")]


def _awaits_answer(connection: Any) -> bool:
    """Whether psycopg waits for an answer. It also knows queries that Django did not start."""
    raw = connection.connection
    status = getattr(getattr(raw, "pgconn", None), "transaction_status", None)
    return status is not None and getattr(status, "name", "") == "ACTIVE"
