"""Log records of the core, handed to Python's `logging`.

A daemon thread calls the handlers. A handler that blocks delays later records of the core and
nothing else.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from . import _core, _greenlets
from ._hints import worded

logger = logging.getLogger("database_locks")
"""The logger that users configure. Its children are ``database_locks.locks`` (acquire and release
in this process) and ``database_locks.core`` (the background thread)."""

_core_logger = logging.getLogger("database_locks.core")

Fields = dict[str, int | str]

_IN_MESSAGE = {
    "event",
    "lock.name",
    "lock.slot",
    "lock.token",
    "lock.holder",
    "lock.now_holder",
    "lock.last_answer",
}
"""Fields that are not appended to a message: it names them, or they are in every record."""


def record(at: float, level: int, message: str, fields: Fields) -> None:
    """Hand one record of the core to the handlers.

    Each field is an attribute of the record: always ``lock_name``, ``lock_token`` and
    ``lock_holder``; ``lock_slot`` of a permit, ``lock_event``, ``lock_held_ms`` and others where the core reports them.
    """
    if not _core_logger.isEnabledFor(level):
        return
    name, holder = fields.get("lock.name"), fields.get("lock.holder")
    event = fields.get("event")
    if event == "busy":
        # The words of legacy (django-database-locks 0.5), which users may search logs for.
        message = f"lock {name} active and owned by {holder}, try later"
    elif name is not None and f"`{name}`" not in message:
        slot = fields.get("lock.slot")
        what = f"lock {name}" if slot is None else f"permit {slot} of {name}"
        message = f"{what}: {message}"
    rest = " ".join(f"{key}={field}" for key, field in fields.items() if key not in _IN_MESSAGE)
    # The messages of the other events are sentences that name their fields.
    if rest and event in (None, "busy"):
        message = f"{message} ({rest})"
    extra: dict[str, Any] = {"lock_name": None, "lock_token": None, "lock_holder": None}
    for key, field in fields.items():
        extra["lock_" + key.removeprefix("lock.").replace(".", "_")] = field
    made = _core_logger.makeRecord(
        _core_logger.name, level, __file__, 0, "%s", (worded(message),), None, extra=extra
    )
    # The time of the event: the record may have waited for a slow handler.
    made.relativeCreated += (at - made.created) * 1000
    made.created, made.msecs = at, (at - int(at)) * 1000
    _core_logger.handle(made)


def _write() -> None:
    while True:
        at, level, message, fields = _core.next_record()
        try:
            record(at, level, message, fields)
        except Exception:  # noqa: BLE001 - a filter of the application failed: go on with the next
            sys.excepthook(*sys.exc_info())


def _start() -> None:
    """Start the thread that writes; called by the extension with the first record."""
    _greenlets.start_thread(_write, (), "database-locks-log")


def close(patience: float) -> None:
    """Wait for the handlers at the end of the process, ``patience`` seconds at most.

    `logging` acquires the lock of each handler after this. A handler that blocks holds its lock,
    and the process would never end: such a handler gets a new lock.
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


_level = -1


def follow() -> None:
    """Have the extension make only records that are logged; called at each acquire, which is cheap."""
    global _level
    level = _core_logger.getEffectiveLevel()
    if level != _level:
        _core.set_log_level(level, _start)
        _level = level


_core.set_program(sys.argv[0] if sys.argv and sys.argv[0] else sys.executable or "python")
