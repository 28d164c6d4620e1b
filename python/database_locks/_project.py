"""What the settings of a Django project say, where there is one."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from .exceptions import LockConfigError

logger = logging.getLogger("database_locks.locks")


def django() -> Any:
    """The settings of the project."""
    try:
        from . import conf
    except ImportError as error:
        raise LockConfigError(
            f"there is no Django here ({error}): use database_locks.connect(url).lock(…)"
        ) from error
    if not conf.is_configured():
        raise LockConfigError(
            "Django has no settings here: set DJANGO_SETTINGS_MODULE and call django.setup(), or use "
            "database_locks.connect(url).lock(…)"
        )
    return conf


def status_file() -> str | os.PathLike[str] | None:
    """Where the settings want the status, if anywhere; once a lock, since Django takes its time."""
    if "django" not in sys.modules:
        return None
    from django.conf import settings

    from . import conf

    # Settings that nobody has read yet are not read for this.
    return conf.status_file() if settings.configured else None


def status(path: str | os.PathLike[str] | None, text: str) -> None:
    """Write the status file, if there is one: '0', '1' trying, '2' held."""
    if path is None:
        return
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError:
        logger.exception("failed to update lock status file %s", path)
