"""The Django project that this process runs, if there is one."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from .exceptions import LockConfigError

if TYPE_CHECKING:
    from types import ModuleType


def conf() -> ModuleType:
    """`database_locks.django.conf`. Raises `LockConfigError` without Django or its settings."""
    try:
        from .django import conf
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
    """``DATABASE_LOCKS_STATUS_FILE``, read once a lock because Django's settings are slow.

    Settings that Django has not loaded yet are not loaded for this.
    """
    if "django" not in sys.modules:
        return None
    from django.conf import settings

    if not settings.configured:
        return None
    from .django import conf

    return conf.status_file()
