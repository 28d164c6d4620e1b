"""URLs of the core, made from Django's settings, and what the settings say that no URL can.

A setting that no URL can express is reported and never dropped: a lock in another database than the
intended one excludes no other process.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

Settings = Mapping[str, Any]

#: The hint for a setting that no URL can express.
WAY_OUT = "give the locks a URL of their own with DATABASE_LOCKS_URL"


@dataclass(frozen=True)
class Problem:
    """A setting that cannot be used for locks.

    ``option`` is its place in the settings, ``cause`` a predicate ("is empty"),
    ``hint`` what to do.
    """

    option: str
    cause: str
    hint: str
    is_unknown: bool = False
    """The option is not known, rather than not supported."""


class Refused(Exception):
    """The database cannot be used for locks with these settings."""

    def __init__(self, option: str, cause: str, hint: str) -> None:
        super().__init__(cause)
        self.problem = Problem(option, cause, hint)


class Url:
    """The parts of a URL, which are percent-encoded when it is written."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.user = ""
        self.password = ""
        self.hosts = ""
        self.database = ""
        self.options: dict[str, str] = {}

    def __str__(self) -> str:
        login = encoded(self.user)
        if self.password:
            login += ":" + encoded(self.password)
        if login:
            login += "@"
        options = "&".join(f"{key}={encoded(value)}" for key, value in self.options.items())
        database = encoded(self.database)
        return f"{self.scheme}://{login}{self.hosts}/{database}" + (options and "?" + options)


def encoded(text: str) -> str:
    # A path that is not UTF-8 is encoded byte for byte; the core refuses it with a message.
    return quote(text.encode("utf-8", "surrogateescape"), safe="")


def place(host: str, port: str) -> str:
    """One host of a URL. A path is the folder of a socket."""
    if host.startswith("/"):
        shown = encoded(host)
    elif ":" in host:
        shown = f"[{host}]"
    else:
        # Not IDNA: the resolver handles international names.
        shown = encoded(host)
    return f"{shown}:{port}" if port else shown


def text(value: Any) -> str:
    return (
        "" if value is None else os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    )


def whole_seconds(value: str, option: str) -> str:
    """Whole seconds; empty for no value, zero or less, where drivers use their own default."""
    if not value:
        return ""
    try:
        seconds = int(float(value))
    except (ValueError, OverflowError):
        raise Refused(option, "is no number", "give a number of seconds") from None
    return str(seconds) if seconds > 0 else ""


def process_user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return ""


def unsupported(
    option: str, cause: str = "cannot be used for locks", hint: str = "leave it out"
) -> Problem:
    return Problem(f"['OPTIONS'][{option!r}]", cause, f"{hint}, or {WAY_OUT}")


def unknown(option: str) -> Problem:
    problem = unsupported(option, "is not known to the locks")
    return replace(problem, is_unknown=True)


def first_socket(paths: Iterable[str]) -> str | None:
    return next((path for path in paths if os.path.exists(path)), None)
