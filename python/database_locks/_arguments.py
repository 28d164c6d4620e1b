"""The arguments of a lock: checked where they are given, in the names of the API."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from . import _names
from .exceptions import LockConfigError

if TYPE_CHECKING:
    from ._manager import Locks

Seconds = float | timedelta

Key = tuple[int, int, str]
"""Of which process, of which `Locks`, which name."""


class _NotSet:
    def __repr__(self) -> str:
        return "NOTSET"


NOTSET: Any = _NotSet()
"""Stands for: what the settings say."""

LONGEST_TEXT = 255


@dataclass(frozen=True)
class Wanted:
    """What a lock is to be like, all of it checked."""

    locks: Locks | None
    key: Key
    name: str
    ttl: float | None
    wait: float | None
    timeout: float
    poll: float | None
    renew_every: float | None
    auto_renew: bool
    holder: str | None
    meta: str | None
    on_busy: str
    until: str
    until_using: str | None
    callback: Callable[[int, Any], Any] | None
    status_file: str | os.PathLike[str] | None


LONGEST_TTL = 315_576_000.0
TTL = "a number of seconds from 0.1 to 315576000 (ten years), a timedelta, or None (without end)"
RENEW = "a number of seconds, at least 0, or a timedelta"


def ttl_of(value: Seconds | None, what: str = "lock_ttl") -> float | None:
    return (
        None
        if value is None
        else _names.seconds(what, value, least=0.1, most=LONGEST_TTL, allowed=TTL)
    )


def lasting_of(value: Seconds | None) -> float | None:
    allowed = "a number of seconds, at least 0, or a timedelta"
    return None if value is None else _names.seconds("lasting", value, least=0, allowed=allowed)


def timeout_of(value: Seconds | None) -> float:
    allowed = "a number of seconds, at least 0, or a timedelta; 0 or None: without limit"
    return 0.0 if value is None else _names.seconds("timeout", value, least=0, allowed=allowed)


def retry_of(value: Seconds | None) -> float | None:
    allowed = "a number of seconds, or None or 0: try once"
    return None if value is None else _names.seconds("retry", value, least=0, allowed=allowed)


def renew_of(value: Seconds | None, what: str = "lock_ttl_renew") -> float | None:
    return None if value is None else _names.seconds(what, value, least=0, allowed=RENEW)


def renew_every(ttl: float | None, before_end: float | None) -> float | None:
    """Each third, or as early as ``lock_ttl_renew`` wants it if that is earlier."""
    if ttl is None or before_end is None:
        return None
    third = ttl / 3
    period = ttl - before_end
    # Longer than the lease itself, which 0.5 took: as often as makes sense.
    return min(period, third) if period >= 0.01 else max(ttl / 10, 0.01)


def text(what: str, value: Any) -> str:
    """A text that every database can hold."""
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


def ticket(value: Any) -> str:
    if not isinstance(value, str):
        raise LockConfigError(f"`ticket` is {type(value).__name__}, must be a text")
    _encodable("ticket", value)
    return value


def flag(what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise LockConfigError(f"`{what}` is {value!r}, must be True or False")
    return value


_ELSEWHERE = {
    "blocking": 'on_busy="raise" for one try, or timeout=… for a limited wait',
    "blocking_timeout": "timeout=…",
    "expire": "lock_ttl=…",
    "holder": "locked_by=…",
    "name": "lock_name=…",
    "owner": "locked_by=…",
    "sleep": "retry=…",
    "ttl": "lock_ttl=…",
    "wait": 'on_busy="raise" for one try, or timeout=… for a limited wait',
}
"""What other libraries call an argument, and the one that it is here."""


def refuse_foreign(words: Mapping[str, Any]) -> None:
    """Say which argument is meant by one of another library."""
    for word in words:
        if word in _ELSEWHERE:
            raise TypeError(f"lock() has no argument {word!r}: use {_ELSEWHERE[word]}")


def one_of(what: str, value: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise LockConfigError(f"`{what}` is {value!r}, must be one of {', '.join(allowed)}")


def meta_of(value: Mapping[str, Any] | None) -> str | None:
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
        # One that is written in C may have none.
        return value
    try:
        signature.bind(0, None)
    except TypeError:
        raise LockConfigError(
            f"`lost_lock_cb` is {value!r}, must take two arguments, as a signal handler does: "
            "def callback(signum, frame)"
        ) from None
    return value
