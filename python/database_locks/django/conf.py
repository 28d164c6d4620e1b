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
from functools import partial
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
    """What the settings of one of ``DATABASES`` come to; `LockConfigError` where there is none.

    No I/O: a back end that makes the password in ``get_connection_params()`` is not asked.
    """
    connection = _connection(name)
    makes_params = getattr(type(connection), "get_connection_params", None)
    djangos = getattr(makes_params, "__module__", "").startswith("django.")
    return _urls.find(
        name,
        connection.vendor,
        connection.settings_dict,
        driver=_driver(connection),
        all_options=djangos,
    )


def _driver(connection: Any) -> str:
    return getattr(getattr(connection, "Database", None), "__name__", "")


def _url_now(name: str) -> str:
    """The URL by what the back end of ``name`` says of it now, with the password in it.

    Called at each connect, on a thread of its own: which has a wrapper of its own as well.
    """
    connection = _connection(name)
    found = _urls.find_by_params(
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


class _Managers:
    """One `Locks` for each place, made when it is first asked for.

    What the settings come to is worked out again only where they have changed: the test runner, for
    one, gives a database another name. Another user or password is no other place: each connect asks
    for those.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_url: dict[tuple[str | None, str], Locks] = {}
        self._by_alias: dict[str, tuple[dict[str, Any], Locks]] = {}
        self.instead: Locks | None = None

    def of_url(self, url: str, alias: str | None = None) -> Locks:
        """``alias`` is asked at each connect for what to log in with, where it is given."""
        from ._manager import Locks

        key = (alias, url)
        with self._lock:
            manager = self._by_url.get(key)
            if manager is None:
                manager = Locks(url) if alias is None else _asking(url, alias)
                self._by_url[key] = manager
            return manager

    def of_alias(self, name: str) -> Locks:
        connection = _connection(name)
        _test_access.require(connection)
        current = connection.settings_dict
        known = self._by_alias.get(name)
        if known is not None and _is_at(known[0], current):
            return known[1]
        as_it_is = _place(current)
        url = find(name).url_of(name)
        if connection.vendor == "sqlite":
            _sqlite_file.prepare(url)
            manager = self.of_url(url)
        else:
            manager = self.of_url(url, name)
        self._by_alias[name] = (as_it_is, manager)
        return manager

    def forget(self) -> None:
        with self._lock:
            self._by_alias = {}
            self._by_url = {}


def _asking(url: str, alias: str) -> Locks:
    """Locks that connect with what a back end says then."""
    from ._manager import Locks

    # MySQL's drivers look up nothing but what their parameters name.
    as_libpq = _connection(alias).vendor == "postgresql"
    return Locks(url, _url_with=partial(_url_now, alias), _environment=as_libpq)


_LOGIN = ("USER", "PASSWORD")


def _is_at(place: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Whether the settings are those of that place, but for user and password."""
    return all(current.get(key) == value for key, value in place.items()) and all(
        key in place or key in _LOGIN for key in current
    )


def _place(current: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they are now, but for user and password."""
    copied = {key: value for key, value in current.items() if key not in _LOGIN}
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
