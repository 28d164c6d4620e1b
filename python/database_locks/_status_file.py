"""The status file of ``DATABASE_LOCKS_STATUS_FILE``: '0' idle, '1' acquiring, '2' held."""

from __future__ import annotations

import logging
import os

logger = logging.getLogger("database_locks.locks")


def write(path: str | os.PathLike[str] | None, status: str) -> None:
    """Write the status, if there is a file for it. A failure is logged and harms no lock."""
    if path is None:
        return
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(status)
    except OSError:
        logger.exception("failed to update lock status file %s", path)
