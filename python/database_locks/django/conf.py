"""The project's settings, and the `Client` of its locks. Settings are read at each use, never
written."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from copy import deepcopy
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.conf import ENVIRONMENT_VARIABLE, settings
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.utils.connection import ConnectionDoesNotExist

from .._client import Client
from ..exceptions import LockConfigError
from . import databases, test_access
from .databases import sqlite

if TYPE_CHECKING:
    from collections.abc import Iterator

#: All settings and their defaults.
DEFAULTS: Mapping[str, Any] = {
    "DATABASE_LOCKS_ALIAS": None,
    "DATABASE_LOCKS_DEFAULT_TTL": 10,
    "DATABASE_LOCKS_DEFAULT_TTL_RENEW": None,
    "DATABASE_LOCKS_ENABLED": True,
    "DATABASE_LOCKS_STATUS_FILE": None,
    "DATABASE_LOCKS_URL": None,
}


def _setting(name: str) -> Any:
    return getattr(settings, name, DEFAULTS[name])


def is_configured() -> bool:
    """Whether Django has settings, or would load some when they are first used."""
    return bool(settings.configured or os.environ.get(ENVIRONMENT_VARIABLE))


def enabled() -> bool:
    """``DATABASE_LOCKS_ENABLED``; `LockConfigError` for a value that is no boolean."""
    value: object = _setting("DATABASE_LOCKS_ENABLED")
    if not isinstance(value, bool):
        raise LockConfigError(f"DATABASE_LOCKS_ENABLED is {value!r}, must be True or False")
    return value


def status_file() -> str | os.PathLike[str] | None:
    """``DATABASE_LOCKS_STATUS_FILE``."""
    path: str | os.PathLike[str] | None = _setting("DATABASE_LOCKS_STATUS_FILE")
    return path


def default_ttl() -> float | timedelta | None:
    """``DATABASE_LOCKS_DEFAULT_TTL``: seconds, 10 by default; ``None``: without end."""
    ttl: float | timedelta | None = _setting("DATABASE_LOCKS_DEFAULT_TTL")
    return ttl


def default_ttl_renew() -> float | timedelta | None:
    """``DATABASE_LOCKS_DEFAULT_TTL_RENEW``: seconds before the end; ``None``: after a third of the
    ttl.
    """
    ttl_renew: float | timedelta | None = _setting("DATABASE_LOCKS_DEFAULT_TTL_RENEW")
    return ttl_renew


def url() -> str | None:
    """``DATABASE_LOCKS_URL``, which contains the password and must not be shown."""
    return _setting("DATABASE_LOCKS_URL") or None


def alias() -> str | None:
    """The one of ``DATABASES`` that has the locks; ``None`` if a URL is set.

    ``DATABASE_LOCKS_ALIAS``, else the database to which the routers send a write of `Lock`, else
    ``default``. Raises `LockConfigError` if both settings are given.
    """
    chosen: str | None = _setting("DATABASE_LOCKS_ALIAS") or None
    if url() is not None:
        if chosen is not None:
            raise LockConfigError(
                "DATABASE_LOCKS_ALIAS and DATABASE_LOCKS_URL name two databases for the locks: "
                "give one of them"
            )
        return None
    if chosen is not None:
        return chosen
    if not apps.models_ready:
        raise LockConfigError(
            "a lock was used before Django was set up: use it later, or call django.setup()"
        )
    if not apps.is_installed("database_locks"):
        # Without the app there is no model for the routers.
        return "default"
    routed: str = router.db_for_write(apps.get_model("database_locks", "Lock"))
    return routed


def find(name: str) -> databases.Found:
    """The URL for one of ``DATABASES``. Raises `LockConfigError` for an unknown alias.

    Without I/O: ``get_connection_params()``, which may fetch a password, is not called.
    """
    connection = _connection(name)
    makes_params = getattr(type(connection), "get_connection_params", None)
    djangos = getattr(makes_params, "__module__", "").startswith("django.")
    return databases.find(
        name,
        connection.vendor,
        connection.settings_dict,
        driver=_driver(connection),
        all_options=djangos,
    )


def _driver(connection: Any) -> str:
    return getattr(getattr(connection, "Database", None), "__name__", "")


def _url_now(name: str) -> str:
    """The URL with the password, from the present ``get_connection_params()`` of the back end.

    Called at each connect on a thread of its own, which has a connection wrapper of its own.
    """
    connection = _connection(name)
    found = databases.find_by_params(
        name,
        connection.vendor,
        connection.get_connection_params(),
        connection.settings_dict,
        driver=_driver(connection),
    )
    return found.url_of(name)


def _connection(name: str) -> Any:
    try:
        return connections[name]
    except ConnectionDoesNotExist:
        known = ", ".join(sorted(connections))
        raise LockConfigError(
            f"DATABASE_LOCKS_ALIAS is {name!r}, must be one of DATABASES: {known}"
        ) from None


class _Clients:
    """One `Client` for each database, made at its first use.

    The URL is made again only if the settings have changed: the test runner, for one, gives a
    database another name. Another user or password is no change, because each connect reads those.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_url: dict[tuple[str | None, str], Client] = {}
        self._by_alias: dict[str, tuple[dict[str, Any], Client]] = {}
        self.instead: Client | None = None

    def of_url(self, url: str, alias: str | None = None) -> Client:
        """With an ``alias``, each connect reads its user and password from the back end."""
        key = (alias, url)
        with self._lock:
            client = self._by_url.get(key)
            if client is None:
                client = Client(url) if alias is None else _asking(url, alias)
                self._by_url[key] = client
            return client

    def of_alias(self, name: str) -> Client:
        connection = _connection(name)
        test_access.require(connection)
        current = connection.settings_dict
        known = self._by_alias.get(name)
        if known is not None and _is_same(known[0], current):
            return known[1]
        as_it_is = _place(current)
        url = find(name).url_of(name)
        if connection.vendor == "sqlite":
            sqlite.prepare(url)
            client = self.of_url(url)
        else:
            client = self.of_url(url, name)
        self._by_alias[name] = (as_it_is, client)
        return client

    def forget(self) -> None:
        with self._lock:
            self._by_alias = {}
            self._by_url = {}


def _asking(url: str, alias: str) -> Client:
    """A client that reads user and password from the back end at each connect."""
    # MySQL's drivers read no environment and no files but those that their parameters name.
    as_libpq = _connection(alias).vendor == "postgresql"
    return Client(url, _url_with=partial(_url_now, alias), _environment=as_libpq)


_LOGIN = ("USER", "PASSWORD")


def _is_same(place: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Whether the settings are the same, except user and password."""
    return all(current.get(key) == value for key, value in place.items()) and all(
        key in place or key in _LOGIN for key in current
    )


def _place(current: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the settings without user and password."""
    copied = {key: value for key, value in current.items() if key not in _LOGIN}
    try:
        copied["OPTIONS"] = deepcopy(current.get("OPTIONS"))
    except Exception:  # noqa: BLE001 - an object that cannot be copied, compared by identity
        copied["OPTIONS"] = dict(current["OPTIONS"])
    return copied


_clients = _Clients()


def locks() -> Client:
    """The client of `lock` and `locked`, one object for each database.

    Nothing is sent; on SQLite the first call creates the file of the locks. Raises
    `LockConfigError` if the settings name no database or cannot be used, and the error of the test
    framework in a test without access to the database.
    """
    if _clients.instead is not None:
        return _clients.instead
    name = alias()
    if name is None:
        place = url() or ""
        if not place.startswith("memory:"):
            # A database outside `DATABASES` is protected from tests like the default one.
            test_access.require(connections[DEFAULT_DB_ALIAS])
        return _clients.of_url(place)
    return _clients.of_alias(name)


def locks_of(name: str) -> Client:
    """The client of the locks in one of ``DATABASES``."""
    return _clients.of_alias(name)


def forget() -> None:
    """Close all connections that no held lock needs. A later use connects again."""
    _clients.forget()
    # A reference cycle with the traceback of a caught exception may keep a client alive.
    gc.collect()


@contextmanager
def instead(client: Client) -> Iterator[None]:
    """For tests: all locks use this client, whatever the settings say."""
    before, _clients.instead = _clients.instead, client
    try:
        yield
    finally:
        _clients.instead = before
