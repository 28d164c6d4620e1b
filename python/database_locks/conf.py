"""The settings of Django's that concern locks: read when they are used, and never written.

The only module of the Django side that the other ones of this package import, and they do so when a
lock is used.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from copy import deepcopy
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.conf import ENVIRONMENT_VARIABLE, settings
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.utils.connection import ConnectionDoesNotExist

from . import _sqlite_file, _test_access, _transactions, _urls
from .exceptions import LockConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._manager import Locks

_transactions.install()

#: All settings there are, and what each is where it is not given.
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
    """Whether Django has settings, or would find some: it reads them when they are first used."""
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
    """``DATABASE_LOCKS_DEFAULT_TTL``: seconds, 10 unless given; ``None``: without end."""
    ttl: float | timedelta | None = _setting("DATABASE_LOCKS_DEFAULT_TTL")
    return ttl


def default_ttl_renew() -> float | timedelta | None:
    """``DATABASE_LOCKS_DEFAULT_TTL_RENEW``: seconds before the end; ``None``: each third."""
    ttl_renew: float | timedelta | None = _setting("DATABASE_LOCKS_DEFAULT_TTL_RENEW")
    return ttl_renew


def url() -> str | None:
    """``DATABASE_LOCKS_URL``, with the password in it: never to be shown."""
    return _setting("DATABASE_LOCKS_URL") or None


def alias() -> str | None:
    """Which of ``DATABASES`` has the locks; ``None``: none of them, there is a URL.

    ``DATABASE_LOCKS_ALIAS``, else what the routers say of a write of a `Lock`, else ``default``.
    Raises `LockConfigError` where both settings are given.
    """
    chosen: str | None = _setting("DATABASE_LOCKS_ALIAS") or None
    if url() is not None:
        if chosen is not None:
            raise LockConfigError(
                "DATABASE_LOCKS_ALIAS and DATABASE_LOCKS_URL name two places for the locks: "
                "give one of them"
            )
        return None
    if chosen is not None:
        return chosen
    if not apps.models_ready:
        raise LockConfigError(
            "a lock was asked for before Django was set up: do it later, or call django.setup()"
        )
    if not apps.is_installed("database_locks"):
        # Without the app there is no model to be routed.
        return "default"
    routed: str = router.db_for_write(apps.get_model("database_locks", "Lock"))
    return routed


def find(name: str) -> _urls.Found:
    """What the settings of one of ``DATABASES`` come to; `LockConfigError` where there is none."""
    connection = _connection(name)
    driver = getattr(getattr(connection, "Database", None), "__name__", "")
    return _urls.find(name, connection.vendor, connection.settings_dict, driver=driver)


def _connection(name: str) -> Any:
    try:
        return connections[name]
    except ConnectionDoesNotExist:
        known = ", ".join(sorted(connections))
        raise LockConfigError(
            f"DATABASE_LOCKS_ALIAS is {name!r}, must be one of DATABASES: {known}"
        ) from None


class _Managers:
    """One `Locks` for each place, made when it is first asked for.

    What the settings come to is worked out again only where they have changed: the test runner, for
    one, gives a database another name.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_url: dict[str, Locks] = {}
        self._by_alias: dict[str, tuple[dict[str, Any], Locks]] = {}
        self.instead: Locks | None = None

    def of_url(self, url: str) -> Locks:
        from ._manager import Locks

        with self._lock:
            manager = self._by_url.get(url)
            if manager is None:
                manager = self._by_url[url] = Locks(url)
            return manager

    def of_alias(self, name: str) -> Locks:
        connection = _connection(name)
        _test_access.require(connection)
        current = connection.settings_dict
        known = self._by_alias.get(name)
        if known is not None and known[0] == current:
            return known[1]
        as_it_is = _copy(current)
        url = find(name).url_of(name)
        if connection.vendor == "sqlite":
            _sqlite_file.prepare(url)
        manager = self.of_url(url)
        self._by_alias[name] = (as_it_is, manager)
        return manager

    def forget(self) -> None:
        with self._lock:
            self._by_alias = {}
            self._by_url = {}


def _copy(current: Mapping[str, Any]) -> dict[str, Any]:
    copied = dict(current)
    try:
        copied["OPTIONS"] = deepcopy(current.get("OPTIONS"))
    except Exception:  # noqa: BLE001 - an object of a driver's, which is the same or another one
        copied["OPTIONS"] = dict(current["OPTIONS"])
    return copied


_managers = _Managers()


def locks() -> Locks:
    """Where `lock` and `locked` go: one object for each database.

    Nothing is sent; on SQLite the first call makes the file of the locks. Raises `LockConfigError`
    where the settings do not say where, or cannot be carried over, and what the test's framework
    raises for a query in a test without access to the database.
    """
    if _managers.instead is not None:
        return _managers.instead
    name = alias()
    if name is None:
        place = url() or ""
        if not place.startswith("memory:"):
            # A database beside those of the project is as real as they are.
            _test_access.require(connections[DEFAULT_DB_ALIAS])
        return _managers.of_url(place)
    return _managers.of_alias(name)


def forget() -> None:
    """Close all connections that no held lock needs; what is used later connects anew."""
    _managers.forget()
    # The traceback of a caught exception may keep one alive.
    gc.collect()


@contextmanager
def instead(manager: Locks) -> Iterator[None]:
    """For tests: all locks go to this one, whatever the settings say."""
    before, _managers.instead = _managers.instead, manager
    try:
        yield
    finally:
        _managers.instead = before
