"""From an entry of Django's ``DATABASES`` to the URL of its locks.

Reads what the drivers read themselves: environment variables, option files, and whether a socket
exists. Nothing else outside the settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...exceptions import LockConfigError
from . import mysql, postgres, sqlite
from .urls import WAY_OUT, Problem, Refused, Settings


@dataclass(frozen=True)
class Found:
    """The URL, which contains the password and must not be shown; ``None`` if there are problems."""

    url: str | None
    problems: tuple[Problem, ...]

    def url_of(self, alias: str) -> str:
        """The URL. `LockConfigError` names the alias, each option, and what to do."""
        if self.url is not None:
            return self.url
        message = "; ".join(
            f"DATABASES[{alias!r}]{problem.option}: {problem.cause}: {problem.hint}"
            for problem in self.problems
        )
        raise LockConfigError(message)


def find(
    alias: str, vendor: str, settings: Settings, *, driver: str = "", all_options: bool = True
) -> Found:
    """The URL for the locks of a database.

    ``vendor`` is ``connection.vendor`` and not the engine's path, which differs for GIS back ends
    and third-party wrappers. ``driver`` is the module of the DB-API driver: MySQL's drivers read
    option files differently. ``all_options=False`` ignores unknown options, which a third-party
    back end removes itself.
    """
    try:
        if vendor == "postgresql":
            url, problems = postgres.url_of(settings)
        elif vendor == "mysql":
            url, problems = mysql.url_of(settings, driver)
        elif vendor == "sqlite":
            url, problems = sqlite.url_of(alias, settings), []
        else:
            raise Refused(
                "['ENGINE']",
                f"is {settings.get('ENGINE') or vendor}, which cannot hold locks",
                "PostgreSQL, MySQL, MariaDB and SQLite can: name one of those with "
                "DATABASE_LOCKS_ALIAS, or " + WAY_OUT,
            )
    except Refused as refused:
        return Found(None, (refused.problem,))
    if not all_options:
        problems = [problem for problem in problems if not problem.is_unknown]
    return Found(None if problems else url, tuple(problems))


def find_by_params(
    alias: str, vendor: str, params: Mapping[str, Any], settings: Settings, *, driver: str = ""
) -> Found:
    """`find` for the result of ``get_connection_params()``, which is meant for the driver."""
    options = dict(params)
    role = (settings.get("OPTIONS") or {}).get("assume_role")
    if vendor == "postgresql" and role and "assume_role" not in options:
        # Django does not pass it to the driver, but sets it after connecting.
        options["assume_role"] = role
    configured = {"ENGINE": settings.get("ENGINE"), "OPTIONS": options}
    return find(alias, vendor, configured, driver=driver)
