"""The Django app ``database_locks``.

Django looks up this module and ``models``, ``admin``, ``migrations`` and ``management`` by their
path, so they stay here. The rest of the Django half is in ``database_locks/django``.
"""

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
    # The type in the first migration, whatever the project's default is.
    default_auto_field = "django.db.models.AutoField"

    def ready(self) -> None:
        from . import _hints
        from .django import checks, transactions

        _hints.use_django()
        transactions.install()
        checks.register()
        connection_created.connect(_close_connections, dispatch_uid="database_locks")


def _close_connections(connection: Any, **_kwargs: Any) -> None:
    """Close connections to a test database before Django drops or clones it.

    PostgreSQL refuses both while a client is connected. Django does both over a connection to no
    database.
    """
    if connection.alias == NO_DB_ALIAS and connection.vendor == "postgresql":
        from .django import conf

        conf.forget()
