"""Checks of arguments. Error messages use the names of the Python API."""

from __future__ import annotations

import inspect
import json
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .exceptions import LockConfigError

if TYPE_CHECKING:
    from ._client import Client

Seconds = float | timedelta

Key = tuple[int, int, str, int]
"""Process generation, `Client`, lock name, and 0; for a permit a number of its own, since permits of
one semaphore do not nest."""


class _NotSet:
    def __repr__(self) -> str:
        return "NOTSET"


NOTSET: Any = _NotSet()
"""Default that means: read the project's settings."""

LONGEST_TEXT = 255


@dataclass(frozen=True)
class AcquireRequest:
    """The checked arguments of one acquire."""

    client: Client | None
    key: Key
    name: str
    ttl: float | None
    wait: float | None
    timeout: float
    poll: float | None
    renew_every: float | None
    auto_renew: bool
    holder: str | None
    at_least: float
    once_per: float | None
    meta: str | None
    on_busy: str
    until: str
    until_using: str | None
    callback: Callable[[int, Any], Any] | None
    status_file: str | os.PathLike[str] | None
    names: tuple[str, ...] = ()
    """Of several locks, their names in order; ``name`` and ``key`` then stand for all of them."""
    permits: int | None = None
    """The limit of a semaphore; ``None``: a lock."""
    shared: bool = False
    """Whether other shared holders may hold the lock at the same time."""

    @property
    def keys(self) -> tuple[Key, ...]:
        """The key of each lock."""
        return tuple((*self.key[:2], name, 0) for name in self.names) or (self.key,)


LONGEST = 1e18
"""The greatest number of seconds that the extension can represent."""


def seconds(
    what: str, value: Any, *, least: float = -LONGEST, most: float = LONGEST, allowed: str
) -> float:
    """A number of seconds, or a `timedelta`."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    # Compared before the conversion: an integer may not fit a float. NaN is in no range.
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        # Python refuses to print integers of more than 4300 digits.
        great = isinstance(value, int) and value.bit_length() > 1000
        given = "too great a number" if great else reprlib.repr(value)
        raise LockConfigError(f"`{what}` is {given}, must be {allowed}")
    return float(value)


LONGEST_TTL = 315_576_000.0
TTL = "a number of seconds from 0.1 to 315576000 (ten years), a timedelta, or None (without end)"
RENEW = "a number of seconds, at least 0, or a timedelta"


def ttl_of(value: Seconds | None, what: str = "lock_ttl") -> float | None:
    return None if value is None else seconds(what, value, least=0.1, most=LONGEST_TTL, allowed=TTL)


def lasting_of(value: Seconds | None) -> float | None:
    allowed = "a number of seconds, at least 0, or a timedelta"
    return None if value is None else seconds("lasting", value, least=0, allowed=allowed)


def timeout_of(value: Seconds | None) -> float:
    allowed = "a number of seconds, at least 0, or a timedelta; 0 or None: without limit"
    return 0.0 if value is None else seconds("timeout", value, least=0, allowed=allowed)


def retry_of(value: Seconds | None) -> float | None:
    allowed = "a number of seconds, or None or 0: try once"
    return None if value is None else seconds("retry", value, least=0, allowed=allowed)


MOST_PERMITS = 65_536


def count(what: str, value: Any, least: int, allowed: str) -> int:
    """A number of permits."""
    known = isinstance(value, int) and not isinstance(value, bool)
    if not known or not least <= value <= MOST_PERMITS:
        raise LockConfigError(f"`{what}` is {reprlib.repr(value)}, must be {allowed}")
    return int(value)


def permits_of(value: Any) -> int:
    allowed = (
        "a whole number from 1 to 65536; to pause the semaphore for all callers set its limit to 0"
    )
    return count("permits", value, 1, allowed)


def limit_of(value: Any) -> int | None:
    allowed = "a whole number from 0 (paused) to 65536, or None: no limit in the database"
    return None if value is None else count("limit", value, 0, allowed)


def slot_of(value: Any) -> int | None:
    if value is None:
        return None
    known = isinstance(value, int) and not isinstance(value, bool)
    if not known or not 0 <= value < MOST_PERMITS:
        raise LockConfigError(
            f"`slot` is {reprlib.repr(value)}, must be the number of a permit, from 0 to 65535"
        )
    return int(value)


def at_least_of(value: Seconds) -> float:
    allowed = "a number of seconds from 0 to 315576000 (ten years), or a timedelta"
    return seconds("at_least", value, least=0, most=LONGEST_TTL, allowed=allowed)


def once_per_of(value: Seconds | None) -> float | None:
    allowed = "a number of seconds from 0.1 to 315576000 (ten years), a timedelta, or None"
    if value is None:
        return None
    return seconds("once_per", value, least=0.1, most=LONGEST_TTL, allowed=allowed)


def renew_of(value: Seconds | None, what: str = "lock_ttl_renew") -> float | None:
    return None if value is None else seconds(what, value, least=0, allowed=RENEW)


def renew_every(ttl: float | None, before_end: float | None) -> float | None:
    """Seconds between renewals: a third of the ttl, or less if ``lock_ttl_renew`` asks for it."""
    if ttl is None or before_end is None:
        return None
    third = ttl / 3
    period = ttl - before_end
    # Legacy accepts a value longer than the lease: renew ten times a lease then.
    return min(period, third) if period >= 0.01 else max(ttl / 10, 0.01)


def text(what: str, value: Any) -> str:
    """A text that every engine can store."""
    if not isinstance(value, str):
        raise LockConfigError(f"`{what}` is {value!r}, must be a text")
    allowed = f"must be 1 to {LONGEST_TEXT} characters without NUL"
    if not value:
        raise LockConfigError(f"`{what}` is empty, {allowed}")
    if len(value) > LONGEST_TEXT:
        raise LockConfigError(f"`{what}` is {len(value)} characters long, {allowed}")
    if "\0" in value:
        raise LockConfigError(f"`{what}` has a NUL in it, {allowed}")
    _encodable(what, value)
    return value


def _encodable(what: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise LockConfigError(
            f"`{what}` is {value!r}, must be Unicode text: character {error.start} is half of a "
            "surrogate pair"
        ) from None


def names_of(value: Iterable[str]) -> tuple[str, ...]:
    """The names of several locks, in order and each once."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise LockConfigError(f"`lock_names` is {value!r}, must be a list of names")
    names = {text("lock_names", name) for name in value}
    if not names:
        raise LockConfigError("`lock_names` is empty, must be 1 to 100 names of locks")
    # As the core orders them: by their bytes.
    return tuple(sorted(names, key=str.encode))


def ticket(value: Any) -> str:
    if not isinstance(value, str):
        raise LockConfigError(f"`ticket` is {type(value).__name__}, must be a text")
    _encodable("ticket", value)
    return value


def flag(what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise LockConfigError(f"`{what}` is {value!r}, must be True or False")
    return value


_FOREIGN = {
    "blocking": 'on_busy="raise" for one try, or timeout=… for a limited wait',
    "blocking_timeout": "timeout=…",
    "every": "once_per=…",
    "expire": "lock_ttl=…",
    "holder": "locked_by=…",
    "name": "lock_name=…",
    "owner": "locked_by=…",
    "period": "once_per=…",
    "sleep": "retry=…",
    "ttl": "lock_ttl=…",
    "wait": 'on_busy="raise" for one try, or timeout=… for a limited wait',
}
"""Names of arguments in other libraries, and the equivalent here."""


def refuse_foreign(words: Mapping[str, Any]) -> None:
    """Raise `TypeError` for an argument of another library; the message names the equivalent."""
    for word in words:
        if word in _FOREIGN:
            raise TypeError(f"lock() has no argument {word!r}: use {_FOREIGN[word]}")


def one_of(what: str, value: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise LockConfigError(f"`{what}` is {value!r}, must be one of {', '.join(allowed)}")


def meta_of(value: Mapping[str, Any] | None) -> str | None:
    if value is not None and not isinstance(value, Mapping):
        raise LockConfigError(f"`meta` is {value!r}, must be a dict")
    try:
        return None if value is None else json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise LockConfigError(f"`meta` cannot be written as JSON: {error}") from None


def callback_of(value: Any) -> Any:
    if value is None:
        return None
    if not callable(value):
        raise LockConfigError(f"`lost_lock_cb` is {value!r}, must be callable")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        # A function written in C may have no signature.
        return value
    try:
        signature.bind(0, None)
    except TypeError:
        raise LockConfigError(
            f"`lost_lock_cb` is {value!r}, must take two arguments, as a signal handler does: "
            "def callback(signum, frame)"
        ) from None
    return value
