"""The Django app ``database_locks``."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.signals import connection_created


class DBLocksConfig(AppConfig):
    """Locks in the database."""

    name = "database_locks"
    label = "database_locks"
    verbose_name = "Database locks"
    # As the first migration made it, whatever the project's own default is.
    default_auto_field = "django.db.models.AutoField"

    def ready(self) -> None:
        from . import _wording, checks

        _wording.use_django()
        checks.register()
        connection_created.connect(_let_go, dispatch_uid="database_locks")


def _let_go(connection: Any, **_kwargs: Any) -> None:
    """Close our connections to a test database before it is dropped or cloned, which PostgreSQL
    refuses while any client is connected. Both are done over a connection to no database."""
    if connection.alias == NO_DB_ALIAS and connection.vendor == "postgresql":
        from . import conf

        conf.forget()
