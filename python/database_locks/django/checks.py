"""System checks, each with an id for `SILENCED_SYSTEM_CHECKS`.

======  ============================================================================
E001    ``DATABASE_LOCKS_ALIAS`` names none of ``DATABASES``
E002    that database's engine cannot hold locks
E003    a setting or option of that database cannot be used for locks
E004    ``DATABASE_LOCKS_URL`` is no URL of a database
E005    both ``DATABASE_LOCKS_ALIAS`` and ``DATABASE_LOCKS_URL`` are given
E006    a ``DATABASE_LOCKS_…`` setting has a value that is not allowed
W001    locks are off
W002    a ``DATABASE_LOCKS_…`` setting is not known
W003    the table's storage engine has no row locks (with ``--database``)
W004    the database of the locks is a replica
W005    the routers prevent ``migrate`` from creating the table
W006    legacy (django-database-locks 0.5) writes local times (with ``--database``)
W007    the table is missing (with ``--database``)
W008    the table lacks columns (with ``--database``)
W009    a view under ``ATOMIC_REQUESTS`` releases its lock before the commit
W010    the table of permits is missing (with ``--database``)
======  ============================================================================
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags
from django.core.checks import Warning as Advice
from django.core.checks import register as _register
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, router
from django.db.migrations.recorder import MigrationRecorder
from django.urls import get_resolver

from .. import _arguments, _core
from .._semaphore import semaphore
from ..exceptions import LockConfigError
from . import conf
from .install import COLUMNS, PERMITS, TABLE

_PREFIX = "DATABASE_LOCKS_"
#: The migration after which the tables are complete.
_LATEST = "0003_permits"


def register() -> None:
    """Register all checks with Django."""
    _register(check_settings, "database_locks")
    _register(check_place, "database_locks")
    _register(check_requests, "database_locks")
    _register(check_table, Tags.database)


def _id(number: str) -> str:
    return f"database_locks.{number}"


def check_settings(app_configs: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """Names and values of the ``DATABASE_LOCKS_…`` settings."""
    found: list[CheckMessage] = []
    if getattr(settings, "DATABASE_LOCKS_ENABLED", True) is False:
        found.append(
            Advice(
                "Locks are off: code under a lock runs without one.",
                hint="DATABASE_LOCKS_ENABLED = True switches them on.",
                id=_id("W001"),
            )
        )
    for name in sorted(set(dir(settings))):
        if name.startswith(_PREFIX) and name not in conf.DEFAULTS:
            close = difflib.get_close_matches(name, conf.DEFAULTS, 1, 0.5)
            found.append(
                Advice(
                    f"There is no setting {name}.",
                    hint=f"Did you mean {close[0]}?"
                    if close
                    else f"Names: {', '.join(conf.DEFAULTS)}.",
                    id=_id("W002"),
                )
            )
    found += (Error(message, hint=hint, id=_id("E006")) for message, hint in _bad_values())
    return found


def _bad_values() -> Iterator[tuple[str, str]]:
    enabled: object = getattr(settings, "DATABASE_LOCKS_ENABLED", True)
    if not isinstance(enabled, bool):
        allowed = 'True or False. Compare a text first: os.environ.get("LOCKS", "1") == "1".'
        yield f"DATABASE_LOCKS_ENABLED is {enabled!r}.", f"Give {allowed}"
    if not _is_valid(_arguments.ttl_of, conf.default_ttl()):
        yield (
            f"DATABASE_LOCKS_DEFAULT_TTL is {conf.default_ttl()!r}.",
            "Give seconds, 0.1 to 10 years, a timedelta, or None: without end.",
        )
    if not _is_valid(_arguments.renew_of, conf.default_ttl_renew()):
        yield (
            f"DATABASE_LOCKS_DEFAULT_TTL_RENEW is {conf.default_ttl_renew()!r}.",
            "Give seconds before the end, a timedelta, or None: a third of the ttl.",
        )
    path: object = conf.status_file()
    if path is not None and not isinstance(path, str | os.PathLike):
        yield f"DATABASE_LOCKS_STATUS_FILE is {path!r}.", "Give the path of a file, or None."
    for name in ("DATABASE_LOCKS_ALIAS", "DATABASE_LOCKS_URL"):
        value = getattr(settings, name, None)
        if value is not None and not isinstance(value, str):
            # The value is not shown: it may contain a password.
            yield f"{name} is of type {type(value).__name__}.", "Give a str, or None."


def _is_valid(check: Callable[[Any], object], value: Any) -> bool:
    try:
        check(value)
    except LockConfigError:
        return False
    return True


def check_place(app_configs: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """Whether the settings name a database that can hold locks."""
    try:
        name = conf.alias()
    except LockConfigError:
        return [
            Error(
                "DATABASE_LOCKS_ALIAS and DATABASE_LOCKS_URL are both given.",
                hint="Keep the one that names the database of the locks.",
                id=_id("E005"),
            )
        ]
    if name is None:
        return _check_url(conf.url())
    if name not in connections:
        return [
            Error(
                f"DATABASE_LOCKS_ALIAS is {name!r}, which is none of DATABASES.",
                hint=f"Choose one of {', '.join(sorted(connections))}.",
                id=_id("E001"),
            )
        ]
    return [*_check_carried(name), *_check_role(name)]


def _check_url(url: Any) -> list[CheckMessage]:
    try:
        _core.check_url(url)
    except (LockConfigError, TypeError) as error:
        return [
            Error(
                "DATABASE_LOCKS_URL is no URL of a database.",
                # The message never repeats the URL.
                hint=str(error),
                id=_id("E004"),
            )
        ]
    return []


def _check_carried(name: str) -> Iterator[CheckMessage]:
    found = conf.find(name)
    for problem in found.problems:
        yield Error(
            f"Locks cannot use DATABASES[{name!r}]{problem.option}: it {problem.cause}.",
            hint=f"{problem.hint[:1].upper()}{problem.hint[1:]}.",
            id=_id("E002" if problem.option == "['ENGINE']" else "E003"),
        )
    if found.url is not None:
        try:
            _core.check_url(found.url)
        except LockConfigError as error:
            yield Error(f"Locks cannot use DATABASES[{name!r}].", hint=str(error), id=_id("E003"))


def _check_role(name: str) -> Iterator[CheckMessage]:
    connection = connections[name]
    mirrored = (connection.settings_dict.get("TEST") or {}).get("MIRROR")
    if mirrored:
        yield Advice(
            f"The database of the locks, {name!r}, is a replica of {mirrored!r}.",
            hint="Locks write: name the primary with DATABASE_LOCKS_ALIAS, or route writes "
            "of database_locks.Lock to it.",
            id=_id("W004"),
        )
    elif connection.vendor != "sqlite" and not router.allow_migrate(
        name, "database_locks", model_name="lock"
    ):
        yield Advice(
            f"The routers prevent migrate from creating the table of locks in {name!r}.",
            hint="Allow it for the app database_locks there, or create the table with "
            "`manage.py locks init`.",
            id=_id("W005"),
        )


def check_requests(app_configs: Any = None, **_kwargs: Any) -> list[CheckMessage]:
    """Whether a view under ``ATOMIC_REQUESTS`` has a lock with ``until="exit"``."""
    atomic = {
        alias for alias in connections if connections[alias].settings_dict.get("ATOMIC_REQUESTS")
    }
    if not atomic or not getattr(settings, "ROOT_URLCONF", None):
        return []
    try:
        views = list(_views(get_resolver().url_patterns))
    except Exception:  # noqa: BLE001 - Django's own check of the URLs reports it
        return []
    found = {}
    for view in views:
        aliases = atomic - getattr(view, "_non_atomic_requests", set())
        for function in _functions(view):
            template = getattr(function, "database_lock", None)
            if isinstance(template, semaphore):
                # It limits how many run; it protects no rows.
                continue
            if aliases and template is not None and template._until == "exit":
                name = f"{function.__module__}.{function.__qualname__}"
                found[name] = Advice(
                    f"The view {name} frees its lock before the request's transaction commits "
                    f"(ATOMIC_REQUESTS on {', '.join(map(repr, sorted(aliases)))}): the next holder "
                    "does not see what it wrote.",
                    hint='Leave out until="exit", or mark the view by '
                    "transaction.non_atomic_requests.",
                    id=_id("W009"),
                )
    return list(found.values())


def _views(patterns: Sequence[Any]) -> Iterator[Any]:
    for pattern in patterns:
        if hasattr(pattern, "url_patterns"):
            yield from _views(pattern.url_patterns)
        else:
            yield pattern.callback


def _functions(view: Any) -> Iterator[Any]:
    """A view, the functions that it wraps, and the methods of a class-based view."""
    while view is not None:
        yield view
        view_class = getattr(view, "view_class", None)
        for name in ("dispatch", *getattr(view_class, "http_method_names", ())):
            method = getattr(view_class, name, None)
            if method is not None and hasattr(method, "database_lock"):
                yield method
        view = getattr(view, "__wrapped__", None)


def check_table(
    app_configs: Any = None, databases: Sequence[str] | None = None, **_kwargs: Any
) -> list[CheckMessage]:
    """Checks that query the database: run with ``--database``, and by ``migrate``."""
    if not databases or not apps.is_installed("database_locks"):
        return []
    try:
        name = conf.alias()
    except LockConfigError:
        return []
    if name is None or name not in databases or name not in connections:
        return []
    connection = connections[name]
    if connection.vendor == "sqlite":
        # The locks have a file of their own, whose table the core creates.
        return []
    try:
        with connection.cursor() as cursor:
            there = connection.introspection.table_names(cursor)
            if TABLE not in there:
                return [] if _is_migrating() else list(_missing(connection))
            found = [*_shape(connection, cursor), *_local_times(connection, cursor)]
            if PERMITS not in there and not _is_migrating():
                found += _no_permits(connection)
            return found
    except DatabaseError:
        # Django itself reports a database that cannot be reached.
        return []


def _is_migrating() -> bool:
    """Whether ``manage.py migrate`` runs the checks: it is about to create what is missing."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "django.core.management.base":
            command = type(frame.f_locals.get("self"))
            if any(base.__module__.endswith(".commands.migrate") for base in command.__mro__):
                return True
        frame = frame.f_back
    return False


def _what_to_run(connection: Any) -> str:
    name = connection.alias
    migrates = router.allow_migrate(name, "database_locks", model_name="lock")
    # `migrate` does not apply a migration again that is recorded as applied.
    applied = MigrationRecorder(connection).applied_migrations()
    if not migrates or ("database_locks", _LATEST) in applied:
        return "`manage.py locks init`"
    where = "" if name == DEFAULT_DB_ALIAS else f" --database {name}"
    return f"`manage.py migrate database_locks{where}`"


def _missing(connection: Any) -> Iterator[CheckMessage]:
    yield Advice(
        f"The database {connection.alias!r} has no table {TABLE}: no lock can be acquired.",
        hint=f"Run {_what_to_run(connection)}, which creates it.",
        id=_id("W007"),
    )


def _no_permits(connection: Any) -> Iterator[CheckMessage]:
    yield Advice(
        f"The database {connection.alias!r} has no table {PERMITS}: no permit of a semaphore can be "
        "acquired.",
        hint=f"Run {_what_to_run(connection)}, which creates it.",
        id=_id("W010"),
    )


def _shape(connection: Any, cursor: Any) -> Iterator[CheckMessage]:
    if connection.vendor == "mysql":
        cursor.execute(
            "SELECT engine FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_name = %s",
            [TABLE],
        )
        engine = cursor.fetchone()
        if engine is not None and engine[0] != "InnoDB":
            yield Advice(
                f"The table {TABLE} uses the engine {engine[0]}, which has no row locks.",
                hint=f"Run {_what_to_run(connection)}, which changes it to InnoDB.",
                id=_id("W003"),
            )
    lacking = [column for column in COLUMNS if column not in _columns(cursor)]
    if lacking and not _is_migrating():
        yield Advice(
            f"The table {TABLE} lacks {', '.join(lacking)}: it is of legacy (django-database-locks 0.5), "
            "and no lock can be acquired.",
            hint=f"Run {_what_to_run(connection)}, which adds them. Legacy processes go on working.",
            id=_id("W008"),
        )


def _local_times(connection: Any, cursor: Any) -> Iterator[CheckMessage]:
    """Whether legacy (django-database-locks 0.5) has written rows and would write local times.

    Such rows are found before they do harm, which they do during a roll-out: also while no lock is
    held.
    """
    if connection.vendor != "mysql" or settings.USE_TZ or settings.TIME_ZONE == "UTC":
        return
    complete = "granted_until" in _columns(cursor)
    which = "WHERE token = 0 OR NOT granted_until <=> expires_at" if complete else ""
    cursor.execute(f"SELECT 1 FROM {TABLE} {which} LIMIT 1")  # noqa: S608 - both are ours
    if cursor.fetchone():
        yield Advice(
            "Legacy (django-database-locks 0.5) has written to the table. With USE_TZ = False it writes "
            f"times in {settings.TIME_ZONE}, and this version reads UTC: during a roll-out the two do not "
            "exclude each other.",
            hint="Update all processes together, or set TIME_ZONE = 'UTC' until no legacy process runs. "
            "Afterwards `manage.py locks prune --older-than 0 --include-legacy` removes its "
            "rows.",
            id=_id("W006"),
        )


def _columns(cursor: Any) -> set[str]:
    cursor.execute(f"SELECT * FROM {TABLE} LIMIT 0")  # noqa: S608
    return {column[0] for column in cursor.description}
