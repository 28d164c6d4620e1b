"""Django's connections that a loss has interrupted in the middle of a query.

The driver waits for an answer that was never read, so each later query on the connection fails: in the
handler of the application, and with ``CONN_MAX_AGE`` in the next request. It is closed at the end of
the block, as after an error of the network; Django opens another one.
"""

from __future__ import annotations

import logging
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._held import Held

logger = logging.getLogger("database_locks.locks")

_FRAMES = 400
"""So many frames are looked at, the innermost first."""


def note(held: Held, frame: FrameType | None) -> None:
    """Where the body was when it was told."""
    if _is_loaded():
        held._interrupted += _in_frames(frame)


def close(held: Held, raised: BaseException | None) -> None:
    """Close what was interrupted. Called in the thread of the body, whose connections they are."""
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
    # Settings that nothing has read yet are not read for this.
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
    """The connection of a cursor, or the one that connects, commits or rolls back in this frame."""
    if not frame.f_globals.get("__name__", "").startswith("django.db.backends."):
        return []
    # Not `hasattr`, which would run code of the object.
    own = frame.f_locals.get("self")
    inside = getattr(own, "__dict__", {})
    return [own] if "alias" in inside and "settings_dict" in inside else [inside.get("db")]


def _awaits_answer(connection: Any) -> bool:
    """Whether psycopg says so; it knows of queries that were started elsewhere, too."""
    raw = connection.connection
    status = getattr(getattr(raw, "pgconn", None), "transaction_status", None)
    return status is not None and getattr(status, "name", "") == "ACTIVE"
