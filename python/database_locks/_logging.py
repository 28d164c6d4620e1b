"""Python's side of what the extension logs.

The core's records are handed to the handlers by a daemon thread of their own. A handler that blocks
delays later records of the core, and nothing else.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from . import _core, _greenlets
from ._wording import worded

logger = logging.getLogger("database_locks")
"""What users configure. Its children are ``database_locks.locks`` (what this process does) and
``database_locks.core`` (what the background thread tells)."""

_core_logger = logging.getLogger("database_locks.core")

Fields = dict[str, int | str]

_IN_MESSAGE = {"lock.name", "lock.token", "lock.holder", "lock.now_holder", "lock.last_answer"}
"""Fields that the message names by itself, or that would lengthen each."""


def record(at: float, level: int, message: str, fields: Fields) -> None:
    """Hand one record of the core's to the handlers.

    Each field is an attribute of the record: ``lock_name``, ``lock_token``, ``lock_holder``, and
    ``lock_held_ms`` and others where the core tells them.
    """
    if not _core_logger.isEnabledFor(level):
        return
    name, holder = fields.get("lock.name"), fields.get("lock.holder")
    if message == "waiting: another holder has it":
        # In the words of 0.5, which users may grep for; once for each new holder.
        message = f"lock {name} active and owned by {holder}, try later"
    elif name is not None and f"`{name}`" not in message:
        message = f"lock {name}: {message}"
    rest = " ".join(f"{key}={said}" for key, said in fields.items() if key not in _IN_MESSAGE)
    # What has a name of its own is a sentence.
    if rest and "event" not in fields:
        message = f"{message} ({rest})"
    extra: dict[str, Any] = {"lock_name": None, "lock_token": None, "lock_holder": None}
    for key, said in fields.items():
        extra["lock_" + key.removeprefix("lock.").replace(".", "_")] = said
    said = worded(message)
    made = _core_logger.makeRecord(
        _core_logger.name, level, __file__, 0, "%s", (said,), None, extra=extra
    )
    # It may have waited for a slow handler.
    made.relativeCreated += (at - made.created) * 1000
    made.created, made.msecs = at, (at - int(at)) * 1000
    _core_logger.handle(made)


def _write() -> None:
    while True:
        at, level, message, fields = _core.next_record()
        try:
            record(at, level, message, fields)
        except Exception:  # noqa: BLE001 - a filter of the application: the next record is told
            sys.excepthook(*sys.exc_info())


def start() -> None:
    """Start the thread that writes; called by the extension when there is something to write."""
    _greenlets.start_thread(_write, (), "database-locks-log")


def close(patience: float) -> None:
    """The interpreter is about to end: wait for the handlers, so many seconds at most.

    `logging` then asks for the lock of each handler, and a handler that blocks has its own: it would
    keep the process from ending. It gets another one.
    """
    if _core.close_log(patience):
        return
    for ref in list(getattr(logging, "_handlerList", [])):
        handler = ref()
        lock = getattr(handler, "lock", None)
        if handler is None or lock is None:
            continue
        if lock.acquire(timeout=0.1):
            lock.release()
        else:
            handler.createLock()


_set = -1


def follow() -> None:
    """Have the extension make only records that a handler wants; called at each acquire, which is cheap."""
    global _set
    level = _core_logger.getEffectiveLevel()
    if level != _set:
        _core.set_log_level(level)
        _set = level


_core.set_program(sys.argv[0] if sys.argv and sys.argv[0] else sys.executable or "python")
