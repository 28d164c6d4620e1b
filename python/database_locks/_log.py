"""Python's side of what the extension logs."""

from __future__ import annotations

import logging
import sys

from . import _core

logger = logging.getLogger("database_locks")
"""What users configure. Its children are ``database_locks.locks`` (what this process does) and
``database_locks.core`` (what the background thread tells)."""

_core_logger = logging.getLogger("database_locks.core")


def record(
    level: int, message: str, name: str | None, token: int | None, holder: str | None, rest: str
) -> None:
    """Write one record of the core's; called by the extension, on a thread of its own."""
    if message == "waiting: somebody else has it":
        # In the words of 0.5, which users may grep for; once for each new holder.
        message = f"lock {name} active and owned by {holder}, try later"
    elif name is not None:
        message = f"lock {name}: {message}"
    extra = {"lock_name": name, "lock_token": token, "lock_holder": holder}
    if rest:
        message = f"{message} ({rest})"
    _core_logger.log(level, "%s", message, extra=extra)


_set = -1


def follow() -> None:
    """Have the extension make no records that nobody wants; asked at each acquire, which is cheap."""
    global _set
    level = _core_logger.getEffectiveLevel()
    if level != _set:
        _core.set_log_level(level)
        _set = level


_core.set_program(sys.argv[0] if sys.argv and sys.argv[0] else sys.executable or "python")
